"""The twelve silent bugs, and python a4_bug/variants.py, which seals them. Not in the student copy.

Each is one mistake in one of three correct steps that look different, so two drawn files seldom differ by bugs alone.
The same mistake is made in a second step too. Students do not get to see that one: their tests are run on both.
"""

import base64
import json
import zlib
from pathlib import Path

HERE = Path(__file__).parent
BUGS = {  # name: two of (step, text, what stands there instead); the first is drawn
    "own": [("packed", "(owner != torch.arange(k)[:, None])", "(owner != torch.arange(k)[:, None] + k)"),
            ("padded", "context[row, owner == row]", "context[row, owner == row + n_pair]")],
    "next": [("padded", "context[row, owner == row]", "context[row, owner == (row + 1) % n_pair]"),
             ("loops", "(owner == i)", "(owner == (i + 1) % len(demos))")],
    "question": [("loops", "part[-len(y) :]", "part[-len(x + y) :]"),
                 ("padded", "labels[row, len(question) : end] = torch.tensor(reply)",
                  "labels[row, 1:end] = torch.tensor([*question[1:], *reply])")],
    "restart": [("padded", "torch.arange(n_entry, n_entry + width)", "torch.arange(width)"),
                ("loops", "[*x, *y], len(owner),", "[*x, *y], 0,")],
    "run_on": [("packed", "positions += range(P, P + len(ids))",
                "positions += range(P + len(positions), P + len(positions) + len(ids))"),
               ("loops", "[*x, *y], len(owner),", "[*x, *y], len(owner) + sum(len(a + b) - 1 for a, b in demos[:i]),")],
    "pairs": [("packed", "return losses.mean()",
               "return sum(losses[pair[where] == i].mean() for i in range(k)) / k"),
              ("loops", "everything += part[-len(y) :]", "everything.append(sum(part[-len(y) :]) / len(y))")],
    "rescaled": [("loops", "values[..., ~hidden, :])", "values[..., ~hidden, :] / (~dropped[i]).double().mean())"),
                 ("padded", "mask, *copies)",
                  "mask, copies[0], copies[1] / (~dropped).double().mean(1).clamp(min=0.01)[:, None, None, None])")],
    "one_draw": [("padded", "context[row, dropped[row]]", "context[row, dropped[0]]"),
                 ("packed", "seen = ~dropped", "seen = ~dropped[:1].expand(k, P)")],
    "meet": [("packed", "own = pair[:, None] == pair", "own = pair[:, None] >= pair"),
             ("loops", "[*x, *y], len(owner),",
              "[*sum(demos[i - 1] if i else (), []), *x, *y], len(owner) - len(sum(demos[i - 1] if i else (), [])),")],
    "keys": [("loops", "keys[..., ~hidden, :]", "keys.detach()[..., ~hidden, :]"),
             ("packed", "mask[None], keys, values)", "mask[None], keys.detach(), values)")],
    "once": [("padded", "owner, demos, hidden).backward()", "owner, demos, dropped[0]).backward()"),
             ("packed", "owner, demos, dropped[t]).backward()", "owner, demos, dropped[0]).backward()")],
    "norm": [("packed", "clip_grad_norm_(leaves, 1.0)", "clip_grad_norm_([*leaves, *model.parameters()], 1.0)"),
             ("padded", "total = sum(part.grad.pow(2).sum() for part in trained).sqrt()",
              "every = [*trained, *model.parameters()]\n"
              "        total = sum(part.grad.pow(2).sum() for part in every if part.grad is not None).sqrt()")],
}
STEPS = ("packed", "padded", "loops")


def made():
    """What sealed.txt holds."""
    correct = {step: (HERE / "steps" / f"{step}.py").read_text(encoding="utf-8") for step in STEPS}
    variants = {}
    for name, layouts in BUGS.items():
        variants[name] = []
        for step, old, new in layouts:
            assert correct[step].count(old) == 1, f"{name}: {old!r} does not occur once in {step}.py"
            variants[name].append(correct[step].replace(old, new))
    return dict(variants=variants, correct=correct)


def main():
    text = base64.b85encode(zlib.compress(json.dumps(made()).encode(), 9)).decode()
    lines = [text[i : i + 120] for i in range(0, len(text), 120)]
    (HERE / "sealed.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
