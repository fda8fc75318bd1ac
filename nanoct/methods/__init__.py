"""One file per method. Each has a flat Config and adapt(model, task, config, seed, progress) -> Adapted.

METHODS is a plain dict, in the order of the paper's table. To add a method, write its file and name it here.
"""

from nanoct.methods import (
    ct_kv,
    ct_prompt,
    dora,
    icl,
    lora,
    prefix_tuning,
    prompt_tuning,
    ttt,
    ttt_ct_kv,
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
