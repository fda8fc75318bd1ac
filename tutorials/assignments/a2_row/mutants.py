"""Mistakes that assignment 2 must catch, in one row and in padded rows, each with the test that says so."""

from grading import Mutant

HOLDS = "test_the_row_holds_what_has_something_to_predict"
POSITIONS = "test_positions_go_on_behind_the_prefix_for_each_pair"
SHIFT = "test_each_answer_token_is_predicted_by_the_one_before_it"
ANSWERS = "test_the_loss_asks_for_answers_alone"
WEIGHTS = "test_every_answer_token_weighs_the_same"
LEFT_OUT = "test_a_pair_that_is_left_out_leaves_the_others_their_number"
OWN_DEMO = "test_leave_one_out_hides_demo_i_from_pair_i"
INSTRUCTION = "test_the_instruction_is_never_left_out_and_nothing_is_without_it"
RATE = "test_dropout_hides_with_probability_p_and_no_entry_is_exempt"
EACH = "test_dropout_is_drawn_for_each_pair_and_each_entry"
DRAWS = "test_draws_come_from_the_generator"
PREFIX = "test_a_token_sees_of_the_prefix_what_its_pair_sees"
OWN = "test_a_token_sees_its_own_pair_up_to_itself"

LEAVE = "seen &= owner != torch.arange(k)[:, None]"
DROP = "seen &= torch.rand(k, len(owner), generator=generator) >= p"
TRIL = "own = own.tril()"
ROWS = "alternatives/padded_rows.py"

MUTANTS = [
    Mutant("ids of one byte", HOLDS, "x and what of y", [
        ("        ids = [*x, *y]", "        ids = [t % 256 for t in [*x, *y]]")]),
    Mutant("positions of a short table", POSITIONS, "go on by one", [("[start + t for t in range(len(read))]",
                                                                      "[start + t % 16 for t in range(len(read))]")]),
    Mutant("sixteen draws for all entries", EACH, "each entry", [(
        "torch.rand(k, len(owner), generator=generator)",
        "torch.rand(k, 16, generator=generator).repeat(1, len(owner) // 16 + 1)[:, : len(owner)]")]),
    Mutant("positions restart at 0", POSITIONS, "positions of a pair", [("start + t for t in range(len(read))",
                                                                         "t for t in range(len(read))")]),
    Mutant("positions run on through the row", POSITIONS, "positions of a pair", [
        ("start + t for t in range(len(read))", "start + first + t for t in range(len(read))")]),
    Mutant("positions one late", POSITIONS, "positions of a pair", [
        ("start + t for t in range(len(read))", "start + 1 + t for t in range(len(read))")]),
    Mutant("target shifted by one", SHIFT, "shift", [("target += ids[len(x):]", "target += ids[len(x) - 1:-1]")]),
    Mutant("read one token late", SHIFT, "shift", [
        ("read = ids[:-1]", "read = ids"), ("first + t for t in range(len(x) - 1, len(ids) - 1)",
                                            "first + t for t in range(len(x), len(ids))")]),
    Mutant("last token of y in the row", HOLDS, "last token", [("read = ids[:-1]", "read = ids")]),
    Mutant("x without its first token", HOLDS, "tokens of a pair", [
        ("ids = [*x, *y]", "x = x[1:] or x\n        ids = [*x, *y]")]),
    Mutant("loss on x", ANSWERS, "answers alone", [
        ("range(len(x) - 1, len(ids) - 1)", "range(len(ids) - 1)"), ("target += ids[len(x):]", "target += ids[1:]"),
        ("for _ in ids[len(x):]", "for _ in ids[1:]")]),
    Mutant("mean over pairs", WEIGHTS, "one mean over all answer tokens", [("1.0 for _", "1.0 / len(y) for _")]),
    Mutant("a sum for a mean", WEIGHTS, "sum to 1", [("weight / weight.sum()", "weight")]),
    Mutant("first answer token alone", ANSWERS, "each once", [
        ("range(len(x) - 1, len(ids) - 1)", "range(len(x) - 1, len(x))"),
        ("target += ids[len(x):]", "target += ids[len(x) : len(x) + 1]"), ("for _ in ids[len(x):]", "for _ in y[:1]")]),
    Mutant("left out and renumbered", LEFT_OUT, "renumbers", [
        ("for i, both in enumerate(pairs):", "for i, both in enumerate([both for both in pairs if both]):")]),
    Mutant("renumbered in the mask", LEFT_OUT, "renumbers the others in the mask", [
        ("pair = row.pair[0]", "pair = row.pair[0].unique(return_inverse=True)[1]")]),
    Mutant("own demo visible", OWN_DEMO, "its own demo", [(LEAVE, "pass")]),
    Mutant("demo i + 1 hidden from pair i", OWN_DEMO, "own demo", [
        (LEAVE, "seen &= owner != torch.arange(k)[:, None] + 1")]),
    Mutant("demos up to i hidden", OWN_DEMO, "not its own", [
        (LEAVE, "seen &= (owner > torch.arange(k)[:, None]) | (owner[None] < 0)")]),
    Mutant("instruction hidden", INSTRUCTION, "instruction", [(LEAVE, LEAVE + "\n        seen &= owner >= 0")]),
    Mutant("left out without being asked", INSTRUCTION, "without leave-one-out", [("if leave_one_out:", "if True:")]),
    Mutant("owner changed in place", OWN_DEMO, "owner in place", [
        (LEAVE, "owner += 10 * (owner < 0)\n        " + LEAVE)]),
    Mutant("dropout rescaled", RATE, "rescaled", [("    return seen\n", "    return seen / (1 - p)\n")]),
    Mutant("mask rescaled", PREFIX, "scales nothing", [("behind = seen[pair]", "behind = seen[pair] / 0.9")]),
    Mutant("keeps a share p", RATE, "share p", [(DROP, DROP.replace(">=", "<"))]),
    Mutant("instruction exempt from dropout", RATE, "every entry", [
        (DROP, DROP.replace("torch.rand", "(torch.rand") + ") | (owner < 0)")]),
    Mutant("a pair exempt from dropout", RATE, "every pair", [
        (DROP, DROP.replace("torch.rand", "(torch.rand") + ") | (torch.arange(k)[:, None] == 0)")]),
    Mutant("dropout shows the own demo again", RATE, "sees its own demo", [(DROP, DROP.replace("&=", "="))]),
    Mutant("one draw for all pairs", EACH, "each pair", [(DROP, DROP.replace("(k,", "(1,"))]),
    Mutant("one draw for all entries", EACH, "each entry", [(DROP, DROP.replace("len(owner)", "1"))]),
    Mutant("one draw for a demo", EACH, "each entry", [
        (DROP, "seen &= torch.rand(k, k + 1, generator=generator)[:, owner] >= p")]),
    Mutant("generator ignored", DRAWS, "same seed", [(DROP, DROP.replace("generator=generator", "generator=None"))]),
    Mutant("drawn once", DRAWS, "repeats", [(DROP, DROP.replace("generator=generator",
                                                                "generator=torch.Generator().manual_seed(0)"))]),
    Mutant("the whole prefix for all", PREFIX, "of the prefix", [
        ("behind = seen[pair]", "behind = torch.ones_like(seen[pair])")]),
    Mutant("the lines of seen from the last", PREFIX, "of the prefix", [
        ("behind = seen[pair]", "behind = seen[pair.flip(0)]")]),
    Mutant("pairs see each other", OWN, "each other", [("own = pair[:, None] == pair", "own = pair[:, None] >= pair")]),
    Mutant("looks ahead", OWN, "looks ahead", [(TRIL, "")]),
    Mutant("does not see itself", OWN, "up to itself", [(TRIL, "own = own.tril(-1)")]),
    Mutant("the row before the prefix", PREFIX, "of the prefix", [("[behind, own]", "[own, behind]")]),
    Mutant("rows: positions restart at 0", POSITIONS, "positions of a pair", [("= start + step", "= step")], ROWS),
    Mutant("rows: own demo visible", OWN_DEMO, "its own demo", [("demo == number", "demo == -2")], ROWS),
    Mutant("rows: loss on x", ANSWERS, "answers alone", [("following >= len(question)", "following > 0")], ROWS),
    Mutant("rows: dropout rescaled", RATE, "rescaled", [
        ("    return table", "    return table * (1 / (1 - p))")], ROWS),
    Mutant("rows: mean over pairs", WEIGHTS, "one mean over all answer tokens", [
        ("1 / sum(len(pairs[other][1]) for other in present)", "1 / len(answer) / len(present)")], ROWS),
    Mutant("rows: looks ahead", OWN, "ahead", [("for other in range(step + 1)", "for other in range(width)")], ROWS),
    Mutant("rows: numbered by line", LEFT_OUT, "renumbers", [
        ("numbers[line, step] = number", "numbers[line, step] = line")], ROWS),
]
