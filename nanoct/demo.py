"""The first minute: what a model answers when it reads demonstrations, and when their cache is trained.

    make smollm2; python -m nanoct.demo                 # a public model, real words
    python -m nanoct.demo --tasks capital antonym --method qttt
    python -m nanoct.demo --model weights/nano/strings  # a built-in model, strings of letters: no download, seconds

Where weights/smollm2 holds no model, the built-in one is the default.

It shows three tasks. Each has its demonstrations (demos), four questions, and the answers of in-context learning (ICL)
and of CT-KV; questions on which the two methods differ come first. ICL reads the demos and keeps their KV cache. CT-KV
starts from that cache and optimises it (methods/ct_kv.py); --method puts another method in its place. The tasks of
strings are held out: no model was trained on them.
"""

from itertools import zip_longest
from pathlib import Path

from nanoct import cli
from nanoct.benchmarks import nano, words
from nanoct.benchmarks.presets import SETTINGS
from nanoct.costs.memory import check_room
from nanoct.fewshot import Text
from nanoct.io import smollm2
from nanoct.io.weights import load, quiet_threads
from nanoct.methods import KNOWN, icl
from nanoct.runs.measure import clock
from nanoct.score import decode, evaluate

WORLD, N_QUERY = "strings", 50
WORDS = "opposite_gender", "past_tense", "animal_foo_plant_bar"  # the default: meaning, grammar, new labels
N_SHOWN = 4  # questions; those on which the two methods differ come first


def tasks(names, tokenizer, of_words, method):
    """The Tasks to show, and a method's Config for them. names: the tasks asked for; of_words: not of letters."""
    if of_words:
        pool = words.tasks()
        names = names or WORDS
        make = lambda name: words.make_task(None, name, tokenizer, seed=42)[0]
        chosen = SETTINGS["words"].get(method, {})
    else:
        pool = nano.WORLDS[WORLD].pools()["held_out"]
        names = names or pool[:3]
        make = lambda name: nano.make_task(WORLD, name, tokenizer, seed=0, n_query=N_QUERY)
        chosen = nano.read_settings()[WORLD].get(method, {})
    if unknown := [name for name in names if name not in pool]:
        raise ValueError(f"--tasks: there is no {unknown[0]!r}; there are {', '.join(pool[:8])} and {len(pool) - 8} "
                         "more." + ("" if of_words else " `make smollm2` gets a model for tasks of real words."))
    return list(map(make, names)), KNOWN[method].Config(**chosen)


def answers(adapted, queries, tokenizer):
    """Decode the answers to some queries, as text."""
    text = Text(tokenizer.decode, tokenizer.decode(queries[0].y[-1:]), str.strip, set(tokenizer.special.values()))
    return decode(adapted, [q.x for q in queries], max(len(q.y) for q in queries) + 4, text)


def show(task, model, tokenizer, method, config):
    """Print one task: demos, questions, the answers of ICL and of a method (its module), and how many are right."""
    text = lambda ids: tokenizer.decode(ids).strip().removesuffix(nano.END).replace(nano.EQUALS, f" {nano.EQUALS}")
    pairs = [f"{text(d.x)} {text(d.y)}" for d in task.demos]
    half = (len(pairs) + 1) // 2
    print(f"\n{task.name}: {len(pairs)} demonstrations")
    for left, right in zip_longest(pairs[:half], pairs[half:], fillvalue=""):
        print(f"    {left:34}{right}".rstrip())
    found, adapted = {}, {}
    tuned = getattr(method, "LABEL", method.__name__)
    for name, module, settings in (("ICL", icl, icl.Config()), (tuned, method, config)):
        start = clock(model.device)
        adapted[name] = module.adapt(model, task, settings)
        seconds = clock(model.device) - start
        found[name] = evaluate(adapted[name], task).per_query, seconds
    right = {name: right for name, (right, _) in found.items()}
    first = sorted(range(len(task.queries)), key=lambda i: right["ICL"][i] == right[tuned][i])[:N_SHOWN]
    said = {name: answers(one, [task.queries[i] for i in first], tokenizer) for name, one in adapted.items()}
    print(f"    {'question':20}{'right':16}{'ICL':16}{tuned}")
    for n, i in enumerate(first):
        mark = {name: said[name][n] + ("" if right[name][i] else " ✗") for name in said}
        print(f"    {text(task.queries[i].x):20}{text(task.queries[i].y):16}{mark['ICL']:16}{mark[tuned]}")
    score = {name: f"{name} {sum(right)} of {len(right)} right, {seconds:.2f} s to adapt"
             for name, (right, seconds) in found.items()}
    steps = f", {config.n_step} steps" if hasattr(config, "n_step") else ""
    print(f"    {score['ICL']}; {score[tuned]}{steps}", flush=True)


def main():
    p = cli.Parser(prog="nanoct demo", description=__doc__)
    p.add_argument("--model", help="folder or hub name of a public model, for real words; default: "
                   "weights/smollm2 where `make smollm2` has put it, else weights/nano/strings, for strings of letters")
    p.add_argument("--tasks", nargs="+", help="names of tasks; default: three")
    p.add_argument("--method", choices=[name for name in KNOWN if name != "icl"], default="ct_kv", metavar="METHOD",
                   help=f"beside ICL: {', '.join(name for name in KNOWN if name != 'icl')}; default: ct_kv")
    p.add_argument("--device", help="cuda, mps or cpu; default: the first there is, cpu for the built-in model")
    args = p.parse_args()
    embedded = nano.FOLDER / WORLD
    name = args.model or smollm2.here() or embedded
    of_words = Path(name).resolve() != embedded.resolve()
    model, tokenizer = load(name, args.device if of_words else args.device or "cpu")
    quiet_threads(model)
    shown, config = tasks(args.tasks, tokenizer, of_words, args.method)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    called = name if of_words else f"the built-in model of {WORLD}"
    print(f"{called}: {size:.1f} million weights, which stay as they are.")
    for task in shown:
        check_room(model, args.method, config, task)
        show(task, model, tokenizer, KNOWN[args.method], config)
    print("\nNext: read nanoct/methods/ct_kv.py; `python -m nanoct.reproduce`, ten methods on four small worlds;")
    print("`python -m nanoct.paper --help`, the paper's benchmarks." if of_words else
          "`make smollm2`, then the same command: real words.")


if __name__ == "__main__":
    cli.run(main)
