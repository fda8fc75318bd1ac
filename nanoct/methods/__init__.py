"""One file per method, all of one shape: a flat Config and adapt(model, task, config, seed, progress) -> Adapted.

METHODS is a plain dict: to add a method, write its file and name it here.
"""

from nanoct.methods import ct_kv, icl, ttt, zero_shot

METHODS = {
    "zero_shot": zero_shot,
    "icl": icl,
    "ttt": ttt,
    "ct_kv": ct_kv,
}
