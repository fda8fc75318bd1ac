"""CT-Prompt: optimise the input embeddings of the demonstrations (Context Tuning, arXiv 2507.04221, section 4).

    theta* = KV(e*),    e* = argmin  - 1/n · sum_i log p_phi(y_i | KV(drop(e without the tokens of demo i)), x_i)
    e_0    = embeddings of x_1 y_1 … x_k y_k

phi is frozen, and P·C numbers are trained, float32. A token can be hidden from pair i: by leave-one-out (pair i is
not shown its own demo) or by token dropout (at random). Later tokens of the prompt must not see it either, or it
shows through their keys and values. So the prompt runs through the model once for each pair. Hiding moves no
position. `one_pass` runs the prompt once for all pairs and hides tokens only from the pairs: cheaper, but demo i leaks.

Cost. A step runs k prompts of P tokens and the row of k pairs, T tokens: 4·N·(k·P+T) FLOPs for N weights (forward and
the gradient of the inputs) and 12·L·H·D·(k·P² + T·(k·P+T)) for attention: O(k²) and O(k³). With `one_pass` 4·N·(P+T),
as cheap as two steps of CT-KV. Memory: the activations of k·P tokens, and 5 float32 copies of e.

    python -m nanoct.reproduce --methods icl ct_prompt ct_kv
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoct.fewshot import Adapted, Prefix, concatenate
from nanoct.footprint import Footprint, Pass
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, can_leave_one_out, pack_demos, visible

LABEL, COLOUR = "CT-Prompt", "#a23b72"  # in tables and figures
SWEEP = dict(n_step=(2, 8, 32), lr=(3e-3, 1e-2, 3e-2), token_dropout=(0.05,))  # values worth trying


@dataclass
class Config:
    n_step: int = 32  # optimiser steps, one pass over all k pairs each
    lr: float = 3e-3  # of AdamW, cosine decay to 0, no warm-up
    token_dropout: float = 0.1  # probability that a token is hidden from a pair's row in a step
    leave_one_out: bool = True  # hide demo i from the row of pair i
    one_pass: bool = False  # one prompt for all pairs: tokens are hidden from the pairs, not from later tokens


def adapt(model, task, config=Config(), seed=0, progress=None):
    """Tune the embeddings of task.demos; returns (model, their KV). progress(step, loss) is called every step.

    Raises ValueError without demos, or if context and pairs do not fit the model. With a single demo
    leave-one-out would leave nothing to attend to: it is switched off with a warning.
    """
    demos = task.need_demos("CT-Prompt")
    generator = torch.Generator().manual_seed(seed)
    tokens, owner = concatenate(model, task.instruction, demos, task.separator)
    leave_one_out = config.leave_one_out and can_leave_one_out(task)
    row = pack_demos(task, model, len(owner))
    embeds = model.embed(tokens).detach().float().requires_grad_()  # (1, P, C)

    masks = iter([visible(owner, len(demos), leave_one_out, config.token_dropout, generator)  # (k, P)
                  for _ in range(config.n_step)])

    def loss():
        prefix, seen = read(model, embeds, owner, next(masks), config.one_pass)
        return F.cross_entropy(answer_logits(model, row, prefix, mask=row.mask(seen)), row.target)

    optimise(loss, [embeds], config, progress)
    with torch.no_grad():
        _, kv = model(embeds=embeds)
    return Adapted(model, prefix=Prefix(kv, owner, len(owner)), n_trained=embeds.numel())


def read(model, embeds, owner, seen, one_pass=False):
    """Run the prompt once for each of k pairs, with some tokens hidden from that pair; the k prompts lie side by side.

    embeds (1 or k, P, C); seen (k, P) bool, what a pair may see. Returns a prefix of k·P entries, and which of them
    each pair may see (k, k·P). With three pairs and leave-one-out:

                    prompt of pair 1   prompt of pair 2   prompt of pair 3
        owner           1  2  3            1  2  3            1  2  3
        pair 1 sees     .  x  x            .  .  .            .  .  .
        pair 2 sees     .  .  .            x  .  x            .  .  .
        pair 3 sees     .  .  .            .  .  .            x  x  .

    Inside prompt i, the tokens hidden from pair i are hidden from all other tokens. With one_pass there is one prompt
    of P entries; nothing is hidden inside it, and `seen` stays as it is.
    """
    k, P = seen.shape
    if one_pass:
        return Prefix(model(embeds=embeds)[1], owner, P), seen
    itself = torch.eye(P, dtype=torch.bool, device=seen.device)
    _, kv = model(embeds=embeds.expand(k, -1, -1), mask=(seen[:, None] | itself).tril())  # a hidden token sees itself
    kv = [tuple(part.transpose(0, 1).flatten(1, 2)[None] for part in layer) for layer in kv]  # (1, K, k·P, D)
    own_prompt = torch.eye(k, dtype=torch.bool, device=seen.device)
    return Prefix(kv, owner.repeat(k), P), (own_prompt[:, :, None] & seen).flatten(1)


def footprint(model_config, lengths, config):
    """P embeddings are trained; a step runs one prompt per pair (or one for all), then the row of pairs behind."""
    P, T, k = lengths.context, lengths.row, 1 if config.one_pass else len(lengths.demos)
    passes = [Pass(k, P, P, masked=k > 1, kv_only=True), Pass(1, T, k * P + T, lengths.targets)]
    return Footprint(config.n_step, passes, trained=P * model_config.n_embd, read=P, prefix=P)
