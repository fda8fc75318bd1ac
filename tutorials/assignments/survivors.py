"""Mutants made by operators that pass all tests, and why they are no mistakes. gate.py checks the list."""

EMPTY = "all of them are empty at first"
AXES = "transpose takes two axes in either order"
SINGLE = "this axis has one entry, the row"
FREE = "the handout leaves it free: "
NEVER = "a draw is equal to p about once in 16 million"
INPUT = "this changes no number that is compared: "
WITHIN = "within the 20% that bytes may be off: small things of allocators are as large"
KD = "K and D are a product in nearly every term, and H·D against H·K is " + WITHIN
UNFINISHED = "a3_ct_kv", "a4_bug", "a6_table"  # their survivors have not all been looked at: no test asks for them yet
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
    "a5_cost": {
        "flops_step: another constant: 2 -> 1'": "within the 5% that FLOPs may be off: keys and values have few heads",
        "flops_step: argument 1: in float32": "a config holds no tensors",
        "peak_bytes: two names swapped: (L, H, K, D, C, F, V) -> (L, H, D, K, C, F, V)": KD,
        "peak_bytes: two names swapped: (c.n_layer, c.n_head, c.n_kv_head, c.head_dim, c.n_embd, c.n_ffn, "
        "c.vocab_size) -> (c.n_layer, c.n_head, c.head_dim, c.n_kv_head, c.n_embd, c.n_ffn, c.vocab_size)": KD,
        "peak_bytes: two names swapped: max(3 * V * n, T * (3 * F + C)) -> max(T * (3 * F + C), 3 * V * n)":
            "the larger of two, in either order",
        **{f"peak_bytes: {change}": WITHIN for change in (
            "another constant: 4 -> 5'", "another operator: 3 * F + C -> 3 * F - C",
            "another operator: 2 * C + 2 * H * D + 3 * F + H -> 2 * C + 2 * H * D + 3 * F - H",
            "another constant: 3 -> 4'", "another constant: 3 -> 2'", "another constant: 3 -> 4''",
            "another constant: 2 -> 3'", "another constant: 2 -> 1'", "another operator: 2 * H -> 2 / H",
            "another constant: 2 -> 3''", "another constant: 2 -> 1''")},
        "peak_bytes: argument 1: in float32": "a config holds no tensors",
        "fit: two names swapped: min(*k, *seconds) -> min(*seconds, *k)": "the least of all, in either order",
        "fit: two names swapped: (i, j) -> (j, i)": "a product in either order",
        "fit: two names swapped: (0, 1) -> (1, 0)'": "a product in either order",
        "fit: the result: cast to float32": FREE + "how exact the numbers are, to 1e-4",
        "fit: argument 2: in float32": "a list holds no tensors; its floats are rounded to 6e-8",
    },
    "a4_bug": {
        "tune: another constant: 1e-08 -> 2e-08": "the handout gives no eps",
        "tune: another constant: 1e-08 -> 5e-09": "the handout gives no eps",
        "tune: two names swapped: (mean, square) -> (square, mean)": EMPTY,
        "tune: another constant: True -> False": "every gradient there is a tensor: the steps keep their graph",
        "tune: two names swapped: max(length, 1) -> max(1, length)": "the larger of two, in either order",
    },
}
