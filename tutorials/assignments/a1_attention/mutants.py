"""Mistakes that assignment 1 must catch, each with the test that says so."""

from grading import Mutant

POSITION = "test_rope_turns_each_vector_by_its_position"
PAIRS = "test_rope_pairs_the_right_components"
PAST = "test_attend_reads_the_past_before_the_new"
TURNED, PARTS = "test_read_keeps_keys_that_later_tokens_can_use", "test_read_in_two_parts_is_read_at_once"
ANGLE = "angle = positions[:, None, :, None] * frequency"
SCALE = "/ math.sqrt(D)  # (B"

MUTANTS = [
    Mutant("positions ignored", POSITION, "positions", [
        (ANGLE, "angle = torch.arange(x.shape[2])[None, None, :, None] * frequency")]),
    Mutant("positions restarted", POSITION, "positions", [
        (ANGLE, "angle = (positions - positions[:, :1])[:, None, :, None] * frequency")]),
    Mutant("positions counted from 1", POSITION, "position 0", [
        (ANGLE, "angle = (positions + 1)[:, None, :, None] * frequency")]),
    Mutant("positions of the first row for all", POSITION, "positions", [
        (ANGLE, "angle = positions[:1, None, :, None] * frequency")]),
    Mutant("no turn at all", "test_rope_keeps_scores_that_depend_on_distance_alone", "distance", [
        (ANGLE, "angle = 0 * positions[:, None, :, None] * frequency")]),
    Mutant("interleaved layout", PAIRS, "pair of components", [
        ("a, b = x[..., : D // 2], x[..., D // 2 :]", "a, b = x[..., ::2], x[..., 1::2]"),
        ("torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)",
         "torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1).flatten(-2)")]),
    Mutant("turned the other way", PAIRS, "other way", [
        ("a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()",
         "a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()")]),
    Mutant("frequency by half the width", PAIRS, "frequency", [("dtype=x.dtype) / D)", "dtype=x.dtype) / (D // 2))")]),
    Mutant("scale of the width of all heads", "test_attend_divides_scores_by_the_right_width", "scale", [
        (SCALE, "/ math.sqrt(H * D)  # (B")]),
    Mutant("no scale", "test_attend_divides_scores_by_the_right_width", "scale", [(SCALE, "# (B")]),
    Mutant("repeat for repeat_interleave", "test_attend_gives_each_query_head_its_kv_head", "KV head", [
        ("k = k.repeat_interleave(H // k.shape[1], dim=1)", "k = k.repeat(1, H // k.shape[1], 1, 1)"),
        ("v = v.repeat_interleave(H // v.shape[1], dim=1)", "v = v.repeat(1, H // v.shape[1], 1, 1)")]),
    Mutant("causal as if there were no past", PAST, "past", [(".tril(P)", ".tril()")]),
    Mutant("looks ahead without a mask", PAST, "up to itself", [(".tril(P)", "")]),
    Mutant("past after the new", PAST, "past", [
        ("torch.cat([past[1].expand(B, -1, -1, -1), v], dim=2)",
         "torch.cat([v, past[1].expand(B, -1, -1, -1)], dim=2)")]),
    Mutant("mask after softmax", "test_attend_weights_what_is_seen_with_a_sum_of_one", "sum to 1", [
        ("    scores = scores.masked_fill(~mask[:, None], -math.inf)\n", ""),
        ("weights = scores.softmax(dim=-1)", "weights = scores.softmax(dim=-1) * mask[:, None]")]),
    Mutant("hidden entries leak", "test_attend_ignores_what_is_hidden", "hidden", [
        ("scores.masked_fill(~mask[:, None], -math.inf)", "scores - 10.0 * ~mask[:, None]")]),
    Mutant("hidden in the past only", "test_attend_lets_the_mask_alone_decide", "mask", [
        ("scores.masked_fill(~mask[:, None], -math.inf)",
         "scores.masked_fill(~mask[:, None] & (torch.arange(P + T) < P), -math.inf)")]),
    Mutant("causal on top of the mask", "test_attend_lets_the_mask_alone_decide", "mask", [
        ("    k = k.repeat_interleave", "    mask = mask & torch.ones(T, P + T, dtype=torch.bool).tril(P)\n"
         "    k = k.repeat_interleave")]),
    Mutant("past changed in place", "test_attend_leaves_its_arguments_alone", "past[0] in place", [
        ("        P = past[0].shape[2]\n", "        P = past[0].shape[2]\n        past[0].div_(math.sqrt(D))\n"),
        ("/ math.sqrt(D)  # (B", "# (B")]),
    Mutant("query scaled in place", "test_attend_leaves_its_arguments_alone", "argument q in place", [
        ("q @ k.transpose(-1, -2) / math.sqrt(D)", "q.div_(math.sqrt(D)) @ k.transpose(-1, -2)")]),
    Mutant("keys cached before RoPE", TURNED, "turned", [
        ("k = rope(heads(y @ w[\"k_proj\"].T), positions, w[\"theta\"])", "k = heads(y @ w[\"k_proj\"].T)"),
        ("attend(q, k, v, past, None)", "attend(q, rope(k, positions, w[\"theta\"]), v, past, None)")]),
    Mutant("read counts positions itself", TURNED, "positions", [
        ("    w, D = weights", "    start = past[0].shape[2] if past else 0\n"
         "    positions = start + torch.arange(tokens.shape[1])[None]\n    w, D = weights")]),
    Mutant("values turned too", "test_read_gives_the_values_of_the_new_tokens", "value", [
        ("v = heads(y @ w[\"v_proj\"].T)", "v = rope(heads(y @ w[\"v_proj\"].T), positions, w[\"theta\"])")]),
    Mutant("one residual sum missing", "test_read_is_the_block", "hidden state", [
        ("x = x + attend(q, k, v", "x = attend(q, k, v")]),
    Mutant("queries not turned", "test_read_is_the_block", "behind the first token", [
        ("q = rope(heads(y @ w[\"q_proj\"].T), positions, w[\"theta\"])", "q = heads(y @ w[\"q_proj\"].T)")]),
    Mutant("past keys turned again", PARTS, "two parts", [
        ("    B, T = tokens.shape\n", "    B, T = tokens.shape\n    if past is not None:\n"
         "        n = past[0].shape[2]\n        at = torch.arange(n)[None].expand(len(tokens), n)\n"
         "        past = rope(past[0], at, w[\"theta\"]), past[1]\n")]),
    Mutant("the past handed back too", PARTS, "new tokens alone", [
        ("return x, (k, v)", "past = past or (k[:, :, :0], v[:, :, :0])\n"
         "    return x, (torch.cat([past[0], k], 2), torch.cat([past[1], v], 2))"),
    ]),
    Mutant("past ignored by read", PARTS, "two parts", [
        ("attend(q, k, v, past, None)", "attend(q, k, v, None, None)")]),
]
