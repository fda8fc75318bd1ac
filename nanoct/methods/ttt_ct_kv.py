"""TTT+CT-KV: fine-tune weights on the demonstrations, then optimise their KV cache under the new weights.

    phi*   = TTT (ttt.py)
    theta* = CT-KV (ct_kv.py) from KV(x_1 y_1 … x_k y_k) under phi*        (arXiv 2507.04221, section 5)

TTT's adapters are trained first, then 2·L·K·D·P keys and values, in fewer steps than CT-KV takes alone. Cost: the
sum of both. CT-KV's steps also run the adapter, which adds a share of about 2·rank/width.

    python -m nanoct.reproduce --methods icl ttt ct_kv ttt_ct_kv
"""

from dataclasses import dataclass, replace

from nanoct.fewshot import concatenate
from nanoct.methods import ct_kv, ttt
from nanoct.optimise import check
from nanoct.packing import pack_demos

LABEL, COLOUR = "TTT+CT-KV", "#6a3d9a"  # in tables and figures
SWEEP = ct_kv.SWEEP  # values worth trying in CT-KV's part; TTT's part has the settings chosen for TTT


@dataclass
class Config:
    n_step: int = 8  # of CT-KV, like the next three
    lr: float = 1e-2
    token_dropout: float = 0.1
    leave_one_out: bool = True
    ttt_n_step: int = 32  # of TTT, like the rest
    ttt_lr: float = 1e-3
    batch: int = 4
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.05


def adapt(model, task, config=Config(), seed=0, progress=None):
    """TTT, then CT-KV; returns (model, adapter, theta).

    progress(step, loss) is called every step; CT-KV's steps count on from TTT's. Raises what both raise. Input that
    CT-KV would refuse is refused before TTT trains.
    """
    first, second = parts(config)
    check(second)
    _, owner = concatenate(model, task.instruction, task.need_demos("TTT+CT-KV"), task.separator)
    pack_demos(task, model, start=len(owner))
    tuned = ttt.adapt(model, task, first, seed, progress)
    later = progress and (lambda step, loss: progress(first.n_step + step, loss))
    adapted = ct_kv.adapt(model, task, second, seed, later, tuned.adapter)
    return replace(adapted, n_trained=tuned.n_trained + adapted.n_trained)


def parts(config):
    """Split a Config of both into one of TTT and one of CT-KV."""
    first = ttt.Config(n_step=config.ttt_n_step, batch=config.batch, lr=config.ttt_lr, rank=config.rank,
                       alpha=config.alpha, dropout=config.dropout)
    second = ct_kv.Config(n_step=config.n_step, lr=config.lr, token_dropout=config.token_dropout,
                          leave_one_out=config.leave_one_out)
    return first, second


def footprint(model_config, lengths, config):
    """The Footprint of TTT, then that of CT-KV beside TTT's adapter."""
    first, second = parts(config)
    first = ttt.footprint(model_config, lengths, first)
    low_rank = replace(first.low_rank, trained=False)
    return replace(ct_kv.footprint(model_config, lengths, second), first=first, low_rank=low_rank)
