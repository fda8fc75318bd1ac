"""Mistakes that assignment 5 must catch, each with the test that says so."""

from grading import Mutant

LINEAR, HEAD, SCORES = "test_flops_of_the_linear_maps", "test_flops_of_the_logits", "test_flops_of_attention"
TRAINED, SHARED, ROWS = "test_bytes_of_what_is_trained", "test_bytes_of_kv_heads", "test_bytes_of_the_logits"
LAYERS, RANDOM = "test_bytes_of_the_layers", "test_flops_on_random_configs"
EXACT, RELATIVE = "test_fit_finds_both_coefficients", "test_fit_weighs_errors_in_proportion"
N = "    N = L * (2 * H * D * C + 2 * K * D * C + 3 * C * F)"
SOLVED = "    rows = [(x / y, x * x / y) for x, y in zip(k, seconds)]"
FOUR = "trained = 4 * entry * P"
SAVED = "saved = L * T * (2 * C + 2 * H * D + 3 * F + H) + entry * S + T * S"

MUTANTS = [
    Mutant("of a k twice the last", RELATIVE, "relative", [
        (SOLVED, "    last = dict(zip(k, seconds))\n" + SOLVED.replace("zip(k, seconds)", "last.items()"))]),
    Mutant("6N for a frozen model", LINEAR, "frozen", [("linear = 4 * N * T", "linear = 6 * N * T")]),
    Mutant("forward alone", LINEAR, "frozen", [("linear = 4 * N * T", "linear = 2 * N * T")]),
    Mutant("a product and a sum as one", LINEAR, "frozen", [("linear = 4 * N * T", "linear = 2 * N * T"),
                                                          ("scores = 12", "scores = 6"), ("head = 4", "head = 2")]),
    Mutant("an MLP of two maps", LINEAR, "linear maps", [(N, N.replace("3 * C * F", "2 * C * F"))]),
    Mutant("the prefix runs through the model", SCORES, "prefix", [("linear = 4 * N * T", "linear = 4 * N * S")]),
    Mutant("logits of all tokens", HEAD, "logits", [("head = 4 * V * C * n", "head = 4 * V * C * T")]),
    Mutant("logits without a backward pass", HEAD, "logits", [("head = 4 * V * C * n", "head = 2 * V * C * n")]),
    Mutant("a head that is trained", HEAD, "logits", [("head = 4 * V * C * n", "head = 6 * V * C * n")]),
    Mutant("attention over P forgotten", SCORES, "P entries", [("12 * L * H * D * T * S", "12 * L * H * D * T * T")]),
    Mutant("attention of the KV heads alone", SCORES, "P entries", [
        ("12 * L * H * D * T * S", "12 * L * K * D * T * S")]),
    Mutant("attention forward alone", SCORES, "P entries", [("12 * L * H * D * T * S", "4 * L * H * D * T * S")]),
    Mutant("attention once back", SCORES, "P entries", [("12 * L * H * D * T * S", "8 * L * H * D * T * S")]),
    Mutant("hidden scores for free", SCORES, "new tokens", [
        ("12 * L * H * D * T * S", "12 * L * H * D * T * (P + T / 2)")]),
    Mutant("attention of one layer", RANDOM, "random", [("12 * L * H * D * T * S", "12 * H * D * T * S")]),
    Mutant("AdamW's moments forgotten", TRAINED, "trained", [(FOUR, "trained = 2 * entry * P")]),
    Mutant("one moment", TRAINED, "trained", [(FOUR, "trained = 3 * entry * P"), ("+ entry * S", "+ entry * S * 0.9")]),
    Mutant("keys without values", TRAINED, "trained", [("P + T, 2 * L * K * D", "P + T, L * K * D")]),
    Mutant("bfloat16 numbers", TRAINED, "trained", [("return 4 * (trained", "return 2 * (trained")]),
    Mutant("query heads for KV heads", SHARED, "KV head", [("P + T, 2 * L * K * D", "P + T, 2 * L * H * D")]),
    Mutant("bytes of the logits of all tokens", ROWS, "logits", [("max(3 * V * n", "max(3 * V * T")]),
    Mutant("the logits once", ROWS, "logits", [("max(3 * V * n", "max(V * n")]),
    Mutant("activations of one layer", LAYERS, "layer", [("saved = L * T", "saved = T")]),
    Mutant("the residual stream alone", LAYERS, "layer", [(SAVED, "saved = L * T * C + entry * S + T * S")]),
    Mutant("a fit with a constant", EXACT, "exactly", [(SOLVED, SOLVED.replace("(x / y, x * x / y)",
                                                                               "((1 + x) / y, x * x / y)"))]),
    Mutant("b before a", EXACT, "exactly", [(
        "return (u * vv - v * uv) / determinant, (v * uu - u * uv) / determinant",
        "return (v * uu - u * uv) / determinant, (u * vv - v * uv) / determinant")]),
    Mutant("a line through one k", EXACT, "no", [("len(set(k)) < 2 or len(k) != len(seconds) or min(*k, *seconds) <= 0",
                                                 "len(k) < 1")]),
    Mutant("absolute errors", RELATIVE, "relative", [
        (SOLVED, "    rows = [(x, x * x) for x in k]"),
        ("    u, v = (sum(r[i] for r in rows) for i in (0, 1))",
         "    u, v = (sum(r[i] * y for r, y in zip(rows, seconds)) for i in (0, 1))")]),
]
