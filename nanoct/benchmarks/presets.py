"""The paper's settings and scores for each benchmark (arXiv 2507.04221), as far as they are known, and ours for words.

SETTINGS[benchmark][method] are fields of the method's Config. "ours" marks values that the paper and the authors' code
leave open; they were not tuned, but for words, whose were chosen by --sweep. PUBLISHED[benchmark][method] are the
paper's scores in percent.
SWEEPS[benchmark][method] are the values {field: values} that `paper --sweep` tries, in all combinations; a benchmark
without its own takes those of words.
"""

LORA = dict(rank=64, lr=1e-4)
TTT = dict(rank=64, alpha=64.0, lr=1e-4)

SETTINGS = {
    "nlp_lr": {
        "prompt_tuning": dict(n_prefix=32, n_step=250, lr=3e-3),
        "prefix_tuning": dict(n_prefix=32, n_step=250, lr=3e-3),
        "lora": LORA | dict(alpha=64.0, n_step=250),  # ours: n_step, and alpha, out of {32, 64, 128}
        "dora": LORA | dict(alpha=64.0, n_step=250),  # ours, as LoRA's
        "ttt": TTT | dict(n_step=250, batch=4),
        "ct_prompt": dict(n_step=250, lr=1e-3, token_dropout=0.05),  # token_dropout, here and below: as CT-KV's
        "ct_kv": dict(n_step=200, lr=1e-3, token_dropout=0.05),
        "ttt_ct_kv": TTT | dict(ttt_n_step=250, ttt_lr=1e-4, batch=4, n_step=25, lr=1e-3, token_dropout=0.05),
    },
    "mmlu": {
        "prompt_tuning": dict(n_prefix=32, n_step=20, lr=1e-3),
        "prefix_tuning": dict(n_prefix=32, n_step=24, lr=1e-3),
        "lora": LORA | dict(alpha=64.0, n_step=20),  # ours
        "dora": LORA | dict(alpha=64.0, n_step=20),  # ours
        "ttt": TTT | dict(n_step=20, batch=8),
        "ct_prompt": dict(n_step=20, lr=3e-4, token_dropout=0.1),
        "ct_kv": dict(n_step=20, lr=1e-3, token_dropout=0.1),
        "ttt_ct_kv": TTT | dict(ttt_n_step=20, ttt_lr=1e-4, batch=8, n_step=5, lr=1e-3, token_dropout=0.1),
    },
    "bbh": {
        "prompt_tuning": dict(n_prefix=32, n_step=16, lr=3e-4),
        "prefix_tuning": dict(n_prefix=32, n_step=16, lr=1e-3),  # lr: ours
        "lora": LORA | dict(alpha=64.0, n_step=16),  # ours
        "dora": LORA | dict(alpha=64.0, n_step=16),  # ours
        "ttt": TTT | dict(n_step=8, batch=5),
        "ct_prompt": dict(n_step=12, lr=3e-4, token_dropout=0.1),
        "ct_kv": dict(n_step=16, lr=1e-3, token_dropout=0.1),
        "ttt_ct_kv": TTT | dict(ttt_n_step=8, ttt_lr=1e-4, batch=5, n_step=8, lr=1e-3, token_dropout=0.1),
    },
    "arc": {
        "prompt_tuning": dict(n_prefix=32, n_step=150, lr=3e-3),
        "prefix_tuning": dict(n_prefix=32, n_step=200, lr=3e-3),
        "lora": dict(rank=128, alpha=16.0, lr=1e-4, n_step=200),  # n_step: ours
        "dora": dict(rank=128, alpha=16.0, lr=1e-4, n_step=200),  # n_step: ours
        "ttt": dict(rank=128, alpha=16.0, lr=1e-4, n_step=200, batch=4),
        "ct_prompt": dict(n_step=150, lr=1e-3, token_dropout=0.1, leave_one_out=False),  # leave_one_out: as CT-KV's
        "ct_kv": dict(n_step=200, lr=3e-3, token_dropout=0.1, leave_one_out=False),
        "ttt_ct_kv": dict(rank=128, alpha=16.0, ttt_n_step=200, ttt_lr=1e-4, batch=4, n_step=25, lr=3e-3,
                          token_dropout=0.1, leave_one_out=False),
    },
    "words": {  # ours, chosen by --sweep with SmolLM2-135M on the validation tasks
        "prompt_tuning": dict(n_prefix=32, n_step=20, lr=3e-2),
        "prefix_tuning": dict(n_prefix=32, n_step=20, lr=1e-2),
        "lora": LORA | dict(alpha=64.0, n_step=20, lr=3e-4),
        "dora": LORA | dict(alpha=64.0, n_step=20, lr=1e-3),  # on six of the tasks, as CT-Prompt
        "ttt": TTT | dict(n_step=8, batch=5, lr=1e-3),
        "ct_prompt": dict(n_step=12, lr=1e-2, token_dropout=0.1),
        "ct_kv": dict(n_step=20, lr=1e-2, token_dropout=0.1),
        "ttt_ct_kv": TTT | dict(ttt_n_step=8, ttt_lr=1e-3, batch=5, n_step=8, lr=3e-3, token_dropout=0.1),
        "anchors": dict(n_step=32, lr=3e-2),  # these three on six of the tasks, at four rates each
        "ia3": dict(n_step=32, lr=1e-2),
        "qttt": dict(n_step=32, lr=3e-4),
    },
}

SWEEPS = {
    "words": {  # eight settings of every method: four rates, at its number of steps and at about a quarter of it
        "prompt_tuning": dict(n_step=(5, 20), lr=(3e-3, 1e-2, 3e-2, 1e-1)),
        "prefix_tuning": dict(n_step=(5, 20), lr=(3e-3, 1e-2, 3e-2, 1e-1)),
        "lora": dict(n_step=(5, 20), lr=(1e-4, 3e-4, 1e-3, 3e-3)),
        "dora": dict(n_step=(5, 20), lr=(1e-4, 3e-4, 1e-3, 3e-3)),
        "ttt": dict(n_step=(2, 8), lr=(1e-4, 3e-4, 1e-3, 3e-3)),
        "ct_prompt": dict(n_step=(3, 12), lr=(1e-3, 3e-3, 1e-2, 3e-2)),
        "ct_kv": dict(n_step=(5, 20), lr=(1e-3, 3e-3, 1e-2, 3e-2)),
        # ttt_n_step and ttt_lr are from SETTINGS: write there first what TTT's sweep chose
        "ttt_ct_kv": dict(n_step=(2, 8), lr=(3e-4, 1e-3, 3e-3, 1e-2)),
    },
}

PUBLISHED = {
    "nlp_lr": dict(zero_shot=34.9, icl=35.6, prompt_tuning=41.4, prefix_tuning=42.0, lora=42.8, dora=42.9, ttt=44.1,
                   ct_prompt=43.2, ct_kv=44.2, ttt_ct_kv=47.6),
    "mmlu": dict(zero_shot=35.8, icl=41.2, prompt_tuning=39.2, prefix_tuning=39.9, lora=40.1, dora=40.3, ttt=43.6,
                 ct_prompt=43.6, ct_kv=43.7, ttt_ct_kv=44.1),
    "bbh": dict(zero_shot=40.9, icl=50.4, prompt_tuning=50.8, prefix_tuning=52.7, lora=51.7, dora=52.6, ttt=57.8,
                ct_prompt=56.3, ct_kv=57.9, ttt_ct_kv=58.2),
    "arc": dict(zero_shot=1.0, icl=13.3, prompt_tuning=12.0, prefix_tuning=9.3, lora=13.5, dora=13.0, ttt=23.8,
                ct_prompt=22.5, ct_kv=23.8, ttt_ct_kv=25.8),
}
