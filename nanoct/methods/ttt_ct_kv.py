"""TTT+CT-KV: fine-tune weights on the demonstrations, then optimise the KV cache they have under the new weights.

    phi*   = TTT (ttt.py),    theta* = CT-KV from KV(x_1 y_1 … x_k y_k) under phi* (ct_kv.py; arXiv 2507.04221, section 5)

Both are trained, one after the other: TTT's adapters, then 2·L·K·D·P keys and values; CT-KV's steps are fewer
than it takes alone. Cost: the sum of both; CT-KV's steps pay for the adapter too, a share of about 2·rank/width.

    python -m nanoct.reproduce --methods icl ttt ct_kv ttt_ct_kv
"""

from dataclasses import asdict, dataclass, replace

from nanoct.methods import ct_kv, ttt

LABEL, COLOUR = "TTT+CT-KV", "#6a3d9a"  # in tables and figures
SWEEP = dict(n_step=(4, 16), lr=(1e-2, 3e-2), token_dropout=(0.05,), ttt_n_step=(8,), ttt_lr=(1e-3, 3e-3),
             rank=(8,), alpha=(16.0,), batch=(4,))


@dataclass
class Config:
    n_step: int = 8  # of CT-KV, as what follows
    lr: float = 1e-2
    token_dropout: float = 0.1
    leave_one_out: bool = True
    ttt_n_step: int = 32  # of TTT, as what follows
    ttt_lr: float = 1e-3
    batch: int = 4
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.05


def adapt(model, task, config=Config(), seed=0, progress=None):
    """TTT, then CT-KV; returns (model, adapter, tuned prefix). progress(step, loss) is called every step, steps of both
    counted through. Raises what they raise."""
    both = asdict(config)
    first = ttt.Config(both.pop("ttt_n_step"), lr=both.pop("ttt_lr"), **{f: both.pop(f) for f in ("batch", "rank", "alpha", "dropout")})
    second = ct_kv.Config(**both)
    ct_kv.adapt(model, task, replace(second, n_step=min(second.n_step, 0), leave_one_out=False), seed)  # what it refuses, before TTT has trained
    tuned = ttt.adapt(model, task, first, seed, progress)
    later = progress and (lambda step, loss: progress(first.n_step + step, loss))
    adapted = ct_kv.adapt(model, task, second, seed, later, tuned.adapter)
    return replace(adapted, n_trained=tuned.n_trained + adapted.n_trained)
