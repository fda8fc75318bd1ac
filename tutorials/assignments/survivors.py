"""Mutants made by operators that pass all tests, and why they are no mistakes. gate.py checks the list."""

LARGER = "the larger of two, in either order"
EMPTY = "all of them are empty at first"
ZERO = "both are 0 at first"
AXES = "transpose takes two axes in either order"
SINGLE = "this axis has one entry, the row"
FREE = "the handout leaves it free: "
NEVER = "a draw is equal to p about once in 16 million"
INPUT = "this changes no number that is compared: "
WITHIN = "within the 20% that bytes may be off: small things of allocators are as large"
KD = "K and D are a product in nearly every term, and H·D against H·K is " + WITHIN
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
            LARGER,
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
    "a3_ct_kv": {
        **{f"{function}: the result: cast to float64": FREE + "float32 or float64"
           for function in ("start", "step_loss", "adapt", "answer")},
        **{f"{function}: the result: cast to float32": FREE + "float32 or float64"
           for function in ("step_loss", "answer")},
        **{f"step_loss: two names swapped: (tokens, positions, pair, where, target) -> {other}": EMPTY
           for other in ("(positions, tokens, pair, where, target)", "(tokens, pair, positions, where, target)",
                         "(tokens, positions, where, pair, target)", "(tokens, positions, pair, target, where)")},
        "step_loss: another constant: 0 -> -1": SINGLE,
        "adapt: two names swapped: [keys.requires_grad_(), values.requires_grad_()] -> "
        "[values.requires_grad_(), keys.requires_grad_()]": "an optimiser takes its leaves in any order",
        "adapt: another operator: torch.rand(len(demos), len(owner), generator=generator) < p -> "
        "torch.rand(len(demos), len(owner), generator=generator) <= p": NEVER,
        "adapt: argument 5: in float32": INPUT + "lr is rounded to 6e-8",
        "adapt: argument 6: in float32": INPUT + "p is rounded to 6e-8",
        "answer: another constant: 0 -> -1": SINGLE,
    },
    "a4_bug": {
        "loops.tune: another constant: 1e-08 -> 2e-08": "the handout gives no eps",
        "loops.tune: another constant: 1e-08 -> 5e-09": "the handout gives no eps",
        "loops.tune: two names swapped: (mean, square) -> (square, mean)": EMPTY,
        "loops.tune: another constant: True -> False": "every gradient there is a tensor: the steps keep their graph",
        "loops.tune: two names swapped: max(length, 1) -> max(1, length)": LARGER,
        "padded.tune: two names swapped: max(len(dropped), 1) -> max(1, len(dropped))": LARGER,
        "padded.tune: another constant: 1 -> 0": "a schedule of no steps has no rate",
        "padded.tune: another constant: 1 -> 2": "the first rate of a schedule is lr, however long that is",
        "padded.tune: a line dropped: model.zero_grad() -> ": "nothing reads the gradients of the weights",
        "packed.tune: a line dropped: model.zero_grad() -> ": "nothing reads the gradients of the weights",
        "packed.step_loss: another constant: 0 -> -1": SINGLE,
        "one_by_one.step_loss: another constant: 0 -> -1'": SINGLE,
        "one_by_one.step_loss: two names swapped: (total, n_token) -> (n_token, total)": ZERO,
        "one_by_one.step_loss: two names swapped: (0.0, 0) -> (0, 0.0)": ZERO,
        "one_by_one.step_loss: two names swapped: torch.einsum('av,av->', log_p, F.one_hot(torch.tensor(y), "
        "log_p.shape[1]).to(log_p)) -> torch.einsum('av,av->', F.one_hot(torch.tensor(y), log_p.shape[1]).to(log_p), "
        "log_p)": "a product in either order",
        "one_by_one.tune: two names swapped: max(1.0, float(torch.linalg.vector_norm(slope))) -> "
        "max(float(torch.linalg.vector_norm(slope)), 1.0)": LARGER,
        **{f"packed.step_loss: two names swapped: (tokens, positions, pair, where, target) -> {other}": EMPTY
           for other in ("(positions, tokens, pair, where, target)", "(tokens, pair, positions, where, target)",
                         "(tokens, positions, where, pair, target)", "(tokens, positions, pair, target, where)")},
        "padded.step_loss: two names swapped: (question, reply) -> (reply, question)'": "a sum of both lengths",
        "padded.step_loss: another constant: 0 -> -1'": "this axis has one entry, the label",
        "padded.step_loss: another constant: 1 -> 2": "labels below 0 do not count, be they -1 or -2",
    },
    "a6_table": {
        "macro_f1: two names swapped: (p, g) -> (g, p)": "a hit is p == g == c, in either order",
        "macro_f1: two names swapped: zip(predicted, gold) -> zip(gold, predicted)": "a hit is p == g == c, in either "
                                                                                     "order",
        "choose: a line dropped: if not whole: raise ValueError('no setting has a score for every validation task.') "
        "-> ": "max of nothing raises a ValueError too",
        "choose: a line dropped: raise ValueError('no setting has a score for every validation task.') -> ":
            "max of nothing raises a ValueError too",
        **{f"{function}: the result: cast to float32": FREE + "how exact the numbers are, to 1e-6"
           for function in ("macro_f1", "paired")},
        **{f"{argument}: in float32": INPUT + "the scores are rounded to 6e-8"
           for argument in ("paired: argument 1", "paired: argument 2", "choose: argument 1")},
    },
}
