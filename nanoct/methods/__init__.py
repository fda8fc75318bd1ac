"""One file per method. Each has a flat Config and adapt(model, task, config, seed, progress) -> Adapted.

METHODS is a plain dict, in the order of the paper's table. To add a method, write its file and name it here. MAP has
nine neighbours of CT-KV: from the same demos, each changes another thing. Commands know the methods of both.
"""

from collections import ChainMap

from nanoct.methods import (
    anchors,
    cpt,
    ct_kv,
    ct_prompt,
    deep_thinking,
    dora,
    i2cl,
    ia3,
    icl,
    lara,
    lora,
    prefix_tuning,
    prompt_tuning,
    prune,
    qttt,
    ttt,
    ttt_ct_kv,
    windows,
    zero_shot,
)

METHODS = {
    "zero_shot": zero_shot,
    "icl": icl,
    "prompt_tuning": prompt_tuning,
    "prefix_tuning": prefix_tuning,
    "lora": lora,
    "dora": dora,
    "ttt": ttt,
    "ct_prompt": ct_prompt,
    "ct_kv": ct_kv,
    "ttt_ct_kv": ttt_ct_kv,
}
MAP = {  # who sees whom; then what is trained from the same start; then what needs no gradient; then vectors
    "windows": windows,
    "anchors": anchors,
    "ia3": ia3,
    "qttt": qttt,
    "cpt": cpt,
    "deep_thinking": deep_thinking,
    "prune": prune,
    "lara": lara,
    "i2cl": i2cl,
}
KNOWN = ChainMap(MAP, METHODS)  # iterates over the ten, then the nine


def expand(names):
    """Names of methods with "map" as the nine of MAP, each once and in the order given."""
    found = []
    for name in names:
        found += MAP if name == "map" else [name]
    return list(dict.fromkeys(found))
