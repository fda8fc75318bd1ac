"""Measure the leak in CT-Prompt's cheap variant: a hidden demo's answer passes through the prompt's later tokens.

    nanoct leak            # the built-in models, minutes on one core

A prompt has k demos (solved examples). Training pair i is to give y_i, the answer of demo i. Every demo's answer is
replaced by another demo's, so that only demo i says what y_i is. Pair i trains the embeddings of demo i alone: those of
the other demos could memorise y_i. Demo i is retrieved if all tokens of y_i are the most likely ones in the row
of pair i. This is measured before that training and after it:

    visible    nothing is hidden from pair i: what its own demo can do
    one pass   demo i is hidden from pair i, but not from the prompt's later tokens (ct_prompt's Config.one_pass)
    k passes   demo i is hidden from both, as CT-Prompt does it: training changes nothing

The gain of one pass by training is the leak. The last demo has no later token, so it cannot leak and is not counted.
"""

import json
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks.nano import FOLDER, WORLDS, make_task, pick
from nanoct.fewshot import concatenate
from nanoct.io.files import check_out, publish, replace_file
from nanoct.io.tokenizer import load_tokenizer
from nanoct.io.weights import load_model
from nanoct.methods import ct_prompt
from nanoct.optimise import optimise
from nanoct.packing import answer_logits, pack_demos
from nanoct.runs.stats import standard_error
from nanoct.runs.table import table

HIDDEN = {"visible": (False, False), "one pass": (False, True), "k passes": (True, True)}  # from the prompt, the pair
CONFIG = ct_prompt.Config(n_step=32, lr=3e-2, token_dropout=0.0)


def retrieved(model, task, in_prompt, from_pair, config=CONFIG):
    """The share of demos, without the last, that their own pair retrieves: (before, after) training.

    in_prompt, from_pair: whether demo i is hidden from the prompt that pair i reads, and from pair i itself.
    """
    tokens, owner = concatenate(model, task.instruction, task.demos, task.separator)
    k, row, start = len(task.demos), pack_demos(task, model, len(owner)), model.embed(tokens)
    own = owner == torch.arange(k, device=owner.device)[:, None]  # (k, P)
    embeds = start.detach().clone().requires_grad_()  # (1, P, C)

    def logits():
        prompts = torch.where(own[..., None], embeds, start)  # (k, P, C): a pair trains its own demo only
        prefix, seen = ct_prompt.read(model, prompts, owner, ~own | (not in_prompt))
        return answer_logits(model, row, prefix, mask=row.mask(seen & ~(own & from_pair).repeat(1, k)))

    @torch.no_grad()
    def share():
        wrong = (logits().argmax(-1) != row.target).float()
        return (torch.zeros(k).index_add_(0, row.pair[row.where], wrong)[:-1] == 0).float().mean().item()

    before = share()
    optimise(lambda: F.cross_entropy(logits(), row.target), [embeds], config)
    return before, share()


def main():
    p = cli.Parser(prog="nanoct leak", description=__doc__)
    p.add_argument("--tasks", type=int, default=4, help="number of held-out tasks of each world")
    p.add_argument("--world", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    p.add_argument("--out", default="results", help="folder of leak.jsonl and leak.md")
    args = p.parse_args()
    cli.at_least_one(args, "tasks")
    args.world = list(dict.fromkeys(args.world))
    names = {world: pick(world, "held_out", [str(args.tasks)], None) for world in args.world}
    torch.set_num_threads(1)
    folder, lines = Path(args.out), []
    for name in ("leak.jsonl", "leak.md"):
        check_out(folder / name)
    for world in args.world:
        model, tokenizer = load_model(FOLDER / world, "cpu"), load_tokenizer(FOLDER / world)
        for name in tqdm(names[world], desc=world):
            task = make_task(world, name, tokenizer, seed=0, n_query=1, wrong=1.0)
            for variant, hidden in HIDDEN.items():
                before, after = retrieved(model, task, *hidden)
                lines.append(dict(world=world, task=name, variant=variant, before=before, after=after,
                                  torch=torch.__version__))
        replace_file(folder / "leak.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())

    def cell(world, variant, when):
        shares = [100 * line[when] for line in lines if (line["world"], line["variant"]) == (world, variant)]
        return f"{mean(shares):.1f} ± {standard_error(shares):.1f}"

    rows = [[f"{variant}, {when}", *(cell(world, variant, when) for world in args.world)]
            for variant in HIDDEN for when in ("before", "after")]
    written = f"Demos retrieved, % ± s.e. over {args.tasks} held-out tasks\n\n" + table(rows, ["", *args.world]) + "\n"
    publish(written, folder / "leak.md")


if __name__ == "__main__":
    cli.run(main)
