"""Mutants made by operators that pass all tests, and why they are no mistakes. gate.py checks the list."""

EMPTY = "all of them are empty at first"
AXES = "transpose takes two axes in either order"
SINGLE = "this axis has one entry, the row"
FREE = "the handout leaves it free: "
NEVER = "a draw is equal to p about once in 16 million"
INPUT = "this changes no number that is compared: "
NAMES = "(tokens, positions, pair, where, target, weight)"

SURVIVORS = {
    "a1_attention": {
        "attend: two names swapped: k.transpose(-1, -2) -> k.transpose(-2, -1)": AXES,
        "attend: another constant: 0 -> 1'": "the first of (keys, values): both have P entries",
        "attend: another constant: 0 -> -1'": "the first of (keys, values): both have P entries",
        "attend: argument 4: in float32": INPUT + "the past is rounded to 6e-8, and float32 inside is fine",
        "read: two names swapped: x.view(B, T, -1, D).transpose(1, 2) -> x.view(B, T, -1, D).transpose(2, 1)": AXES,
        "read: two names swapped: attend(q, k, v, past, None).transpose(1, 2) -> "
        "attend(q, k, v, past, None).transpose(2, 1)": AXES,
        "read: argument 3: in float32": INPUT + "the past is rounded to 6e-8, and float32 inside is fine",
    },
    "a2_row": {
        **{f"pack: two names swapped: {NAMES} -> {other}": EMPTY for other in (
            "(positions, tokens, pair, where, target, weight)", "(tokens, pair, positions, where, target, weight)",
            "(tokens, positions, where, pair, target, weight)", "(tokens, positions, pair, target, where, weight)",
            "(tokens, positions, pair, where, weight, target)")},
        "pack: another constant: 1.0 -> 2.0": "the weights are divided by their sum",
        "pack: another constant: 1.0 -> 0.5": "the weights are divided by their sum",
        "pack: the result: turned about": FREE + "the order of the answers",
        "pack: the result: cast to half": FREE + "the dtype of the weights; they are near enough",
        "pack: the result: cast to float64": FREE + "the dtype of the weights",
        "visible: another operator: p > 0 -> p >= 0": "with p = 0 every draw is at least p",
        "visible: another constant: 0 -> -1": "with p = 0 every draw is at least p",
        "visible: another operator: torch.rand(k, len(owner), generator=generator) >= p -> "
        "torch.rand(k, len(owner), generator=generator) > p": NEVER,
        "visible: argument 4: in float32": INPUT + "p is rounded to 6e-8",
        "row_mask: another constant: 0 -> -1": SINGLE,
    },
    "a4_bug": {
        "tune: two names swapped: (mean, square) -> (square, mean)": EMPTY,
        "tune: another constant: True -> False": "every gradient there is a tensor: the steps keep their graph",
        "tune: two names swapped: max(length, 1) -> max(1, length)": "the larger of two, in either order",
    },
}
