"""The twelve silent bugs, and python a4_bug/variants.py, which seals them. Not in the student copy.

Each is one mistake in one of three correct steps that look different, so two drawn files seldom differ by bugs alone.
"""

import base64
import json
import zlib
from pathlib import Path

HERE = Path(__file__).parent
BUGS = {  # name: (step, text, what stands there instead)
    "own": ("packed", "(owner != torch.arange(k)[:, None])", "(owner != torch.arange(k)[:, None] + k)"),
    "next": ("padded", "context[row, owner == row]", "context[row, owner == (row + 1) % n_pair]"),
    "question": ("loops", "part[-len(y) :]", "part[-len(x + y) :]"),
    "restart": ("padded", "torch.arange(n_entry, n_entry + width)", "torch.arange(width)"),
    "run_on": ("packed", "positions += range(P, P + len(ids))",
               "positions += range(P + len(positions), P + len(positions) + len(ids))"),
    "pairs": ("packed", "return losses.mean()",
              "return sum(losses[pair[where] == i].mean() for i in range(k)) / k"),
    "rescaled": ("loops", "values[..., ~hidden, :])", "values[..., ~hidden, :] / (~dropped[i]).double().mean())"),
    "one_draw": ("padded", "context[row, dropped[row]]", "context[row, dropped[0]]"),
    "meet": ("packed", "own = pair[:, None] == pair", "own = pair[:, None] >= pair"),
    "keys": ("loops", "keys[..., ~hidden, :]", "keys.detach()[..., ~hidden, :]"),
    "once": ("padded", "owner, demos, hidden).backward()", "owner, demos, dropped[0]).backward()"),
    "norm": ("packed", "clip_grad_norm_(leaves, 1.0)", "clip_grad_norm_([*leaves, *model.parameters()], 1.0)"),
}
STEPS = ("packed", "padded", "loops")


def made():
    """What sealed.txt holds."""
    correct = {step: (HERE / "steps" / f"{step}.py").read_text(encoding="utf-8") for step in STEPS}
    variants = {}
    for name, (step, old, new) in BUGS.items():
        assert correct[step].count(old) == 1, f"{name}: {old!r} occurs {correct[step].count(old)} times in {step}.py"
        variants[name] = correct[step].replace(old, new)
    return dict(variants=variants, correct=correct)


def main():
    text = base64.b85encode(zlib.compress(json.dumps(made()).encode(), 9)).decode()
    lines = [text[i : i + 120] for i in range(0, len(text), 120)]
    (HERE / "sealed.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
