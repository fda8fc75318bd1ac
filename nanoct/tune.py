"""Tune a context on your own examples, keep it as a file, and answer questions with it.

    python -m nanoct.tune --data mine.jsonl --method ct_kv --out ctx.safetensors --held-out test.jsonl
    python -m nanoct.tune --predict --context ctx.safetensors --data questions.jsonl --out answers.jsonl
    python -m nanoct.tune --ask --context ctx.safetensors

A file of examples has JSON lines {"input": "hot", "output": "cold"}, with "options": ["cold", ...] if the answer
is one of them. A question needs the input alone. The lines of --data are demos, the examples to learn from. Of 20 lines
or more a fifth is held out instead, so that a score beside ICL's says whether tuning paid. A template
makes text of a line: x is what stands before {output}; y is {output} and what follows, the terminator. Options are
compared by their mean loss per token. Without options the answer is decoded greedily up to the terminator. It is right
if it is the output, except for spaces around it. The context keeps template, instruction and metric for --predict.

Most tokenizers join a space to the word behind it, so a template for words does best with "A:{output}" and outputs that
begin with a space. With --chat the model's own chat template writes demos and questions, and needs no such care.
"""

import json
import random
import re
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from nanoct import cli
from nanoct.benchmarks.nano import BOS, END, EQUALS, FOLDER
from nanoct.costs.memory import check_room
from nanoct.fewshot import Demo, Task, check_fits, check_ids
from nanoct.io import smollm2, weights
from nanoct.io.chat import Chat
from nanoct.io.files import check_out, lock, read_json_lines, replace_file
from nanoct.methods import KNOWN
from nanoct.runs.contexts import check_savable, load_adapted, read_about, save_adapted
from nanoct.runs.measure import check_finite, finite
from nanoct.score import NotFinite, decode, demo_loss, judge, lowest, option_losses
from nanoct.template import PLAIN, check_ends, encode_example, hint, is_embedded, split, text_of

EMBEDDED = f"{{input}}{EQUALS}{{output}}{END}"  # the template of the built-in vocabulary
METRICS = None, "accuracy", "macro_f1", "text"  # None: depends on whether a line has options
BASELINES = "icl", "zero_shot"  # their scores are printed beside a held-out score
ENOUGH, NONE = 20, "none"  # lines, of which a fifth is held out; --held-out for no such lines


@dataclass
class Line:
    where: str  # such as "mine.jsonl, line 3"
    input: str
    output: str | None = None
    options: list | None = None


def read_lines(path, need_output=True):
    """Read the Lines of a file. Raises OSError or ValueError with a sentence that names the wrong line and field."""
    rows = read_json_lines(path)
    if not rows:
        raise ValueError(f"{path} is empty: give it a line for every example.")
    return [_read_line(where, values, need_output) for where, values in rows]


def _read_line(where, values, need_output):
    line = Line(where, *(values.get(name) for name in ("input", "output", "options")))
    for name, needed in [("input", True), ("output", need_output)]:
        if not isinstance(values.get(name), str) and (needed or values.get(name) is not None):
            shown = f"is {values[name]!r:.60}" if name in values else "is missing"
            raise ValueError(f"{where}: {name!r} {shown}; it must be a string.")
    if line.options is not None:
        if line.options == []:
            raise ValueError(f"{where}: 'options' is empty: list what is chosen from, or leave it out.")
        if not isinstance(line.options, list) or not all(isinstance(o, str) for o in line.options):
            raise ValueError(f"{where}: 'options' is {line.options!r:.60}; it must be a list of strings.")
        if line.output is not None and line.output not in line.options:
            raise ValueError(f"{where}: the output {cli.not_among(line.output, line.options)}.")
    return line


def unescape(text):
    r"""\n, \t and \\ of a command line as the characters they stand for."""
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t"}.get(found[1], "\\"), text)


def decoded(line, metric):
    """Whether the answer to a line is decoded, and not chosen among options."""
    return metric == "text" or metric is None and not line.options


def encode(line, model, tokenizer, template, metric, start=0, chat=False):
    """Token ids of a line's x, and {answer: ids of y} of its options, or else of its output, if any.

    Raises ValueError with the line if it has no tokens or unknown ones, or does not fit the model behind `start`
    tokens of context; and where answers are decoded, if the template has no terminator or the output contains it.
    """
    if decoded(line, metric):
        check_ends(line.where, line.output, template, "--template")
    answers = [answer for answer in line.options or [line.output] if answer is not None]
    x, ys = encode_example(line.where, line.input, answers, tokenizer, template, chat)
    check_ids(model, chain(x, *ys.values()))
    longest = max(map(len, ys.values()), default=1)
    check_fits(model, start + len(x) + longest - 1, f"{line.where}, behind {start} tokens,")
    return x, ys


def start_of(adapted):
    return adapted.prefix.next_position if adapted.prefix is not None else 0


def answer(adapted, tokenizer, lines, template, metric, max_new_tokens, chat=False):
    """Answer each line: [(prediction, {option: mean loss per token in nats})], with {} if the answer is decoded.

    Raises ValueError on a line that cannot be encoded (see encode).
    """
    encoded = [encode(line, adapted.model, tokenizer, template, metric, start_of(adapted), chat) for line in lines]
    free = [i for i, line in enumerate(lines) if decoded(line, metric)]
    chosen = [i for i, line in enumerate(lines) if not decoded(line, metric)]
    answers = [None] * len(lines)
    questions = [(x, list(ys.values())) for x, ys in (encoded[i] for i in chosen)]
    for i, losses in zip(chosen, option_losses(adapted, questions)):
        options = list(encoded[i][1])
        answers[i] = lowest(options, losses)[0], dict(zip(options, losses))
    prompts = [encoded[i][0] for i in free]
    for i, text in zip(free, decode(adapted, prompts, max_new_tokens, text_of(tokenizer, template))):
        answers[i] = text, {}
    return answers


def judged(lines, answers, metric):
    """The Result of lines with an output; answers are compared without the spaces around them, options too."""
    best = []
    for prediction, losses in answers:
        tied = lowest(losses, losses.values()) or [prediction]
        best.append([answer.strip() for answer in tied])
    return judge(best, [line.output.strip() for line in lines], metric)


def score(lines, answers, metric):
    """Score in [0, 1] over the lines with an output: the share that is right, or macro-F1; ties as in nanoct.score."""
    known = [i for i, line in enumerate(lines) if line.output is not None]
    return judged([lines[i] for i in known], [answers[i] for i in known], metric).score


def configure(method, settings):
    """The Config of a method with settings ["name=value", ...]. Raises ValueError on a wrong name or value."""
    Config, values = KNOWN[method].Config, {}
    types = {f.name: f.type for f in fields(Config)}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or name not in types:
            raise ValueError(f"--set {text!r}: write FIELD=VALUE; {method} has {', '.join(types) or 'no fields'}.")
        if name in values:
            raise ValueError(f"--set {name} is given twice: give it once.")
        values[name] = cli.value(f"--set {name}", value, types[name])
    return Config(**values)


@contextmanager
def claimed(out, force, *read):
    """with claimed(out, force, files to read): no other process writes the file `out` meanwhile.

    Raises ValueError if it exists without `force`, is read too, or belongs to a model; OSError if it cannot be written.
    """
    path = Path(out)
    check_out(path)
    with lock(path):
        is_read = path.exists() and any(path.samefile(file) for file in read if file and Path(file).exists())
        if is_read or path.exists() and (path.parent / "config.json").exists():
            raise ValueError(f"--out {out} is one of the files that are read, or of a model: give another file.")
        if path.exists() and not force:
            raise ValueError(f"--out {out} exists: give another file, or --force to overwrite it.")
        yield


def need_options(lines, metric):
    if metric in ("accuracy", "macro_f1") and (without := [line.where for line in lines if not line.options]):
        raise ValueError(f"{without[0]}: no 'options', which the metric {metric} chooses among; add them, or tune with "
                         "--metric text.")


def read_data(data, held_out):
    """The demos, the held-out lines that repeat none of them, and a sentence on where these come from.

    held_out: a file, NONE, or None: a fifth of the lines of `data`, the same at every call, if there are ENOUGH.
    """
    demos, held, source = read_lines(data), [], ""
    if held_out is None and len(demos) >= ENOUGH:
        drawn = random.Random(0).sample(range(len(demos)), len(demos) // 5)
        source = f"{len(drawn)} of the {len(demos)} lines of {data}, held out (--held-out {NONE} learns from all)"
        held = [demos[i] for i in sorted(drawn)]
        demos = [demo for i, demo in enumerate(demos) if i not in drawn]
    elif held_out not in (None, NONE):
        held = read_lines(held_out)
        source = f"{held_out}, {len(held)} lines"
    given = {demo.input for demo in demos}
    asked = [line for line in held if line.input not in given]
    if len(asked) < len(held):
        source += f", without the {len(held) - len(asked)} that repeat a demo"
    return demos, asked, source


def default_model():
    return smollm2.here() or FOLDER / "strings"


def load(name, device):
    """Load model and tokenizer; small matrices on a CPU run fastest in one thread."""
    model, tokenizer = weights.load(name, device)
    weights.quiet_threads(model)
    return model, tokenizer


def tune(args):
    """Tune, save, and score on the held-out lines."""
    method, config = KNOWN[args.method], configure(args.method, args.set)
    lines, held_out, source = read_data(args.data, args.held_out)
    need_options(held_out, args.metric)
    if source and not held_out:
        print(f"warning: {source}: nothing is left to score, so give other lines with --held-out.", file=sys.stderr)
    if args.template is not None:
        split(args.template)  # before a large model is loaded
    args.model = args.model or default_model()
    model, tokenizer = load(args.model, args.device)
    head, template = args.instruction, args.template or (EMBEDDED if is_embedded(tokenizer) else PLAIN)
    if args.chat:
        head, template = Chat(weights.fetch(args.model, weights=False)).frame(args.instruction)
    try:
        instruction = tokenizer.encode(head, bos=tokenizer.adds_bos and not args.chat, special=args.chat)
    except ValueError as error:
        raise ValueError(f"--instruction: {error}.{hint(tokenizer)}") from None
    encoded = [encode(line, model, tokenizer, template, args.metric, chat=args.chat) for line in lines]
    demos = [Demo(x, ys[line.output]) for line, (x, ys) in zip(lines, encoded)]
    task = Task(Path(args.data).stem, demos, [], instruction)
    steps = [f.name for f in fields(config) if f.name.endswith("n_step")]
    check_room(model, args.method, config, task)
    # with no steps: what does not fit is refused before the work
    leave_one_out = getattr(config, "leave_one_out", True)
    with finite(args.method, task.name):
        untrained = method.adapt(model, task, replace(config, **dict.fromkeys(steps, 0)), args.seed)
        check_savable(untrained)
        before = demo_loss(untrained, task, leave_one_out)
    check_finite(args.method, task, [before])
    start = start_of(untrained)
    encoded += [encode(line, model, tokenizer, template, args.metric, start, args.chat) for line in held_out]
    longest = max(len(y) for _, ys in encoded for y in ys.values())
    how = dict(template=template, metric=args.metric, max_new_tokens=2 * longest + 8)
    how |= dict(chat=True) if args.chat else {}

    began = time.perf_counter()
    n_step = sum(getattr(config, name) for name in steps)
    with finite(args.method, task.name), tqdm(total=n_step, desc=args.method, unit="step", disable=not steps) as bar:
        adapted = method.adapt(model, task, config, args.seed, lambda step, loss: bar.update())
        seconds = time.perf_counter() - began
        after = demo_loss(adapted, task, leave_one_out)
    check_finite(args.method, task, [after])
    about = dict(name=str(args.model), tokenizer=tokenizer, instruction=args.instruction, seed=args.seed, **how)
    save_adapted(adapted, args.out, args.method, config, len(demos), **about)
    trained = f"{before:.4f} -> {after:.4f} in {n_step} steps" if n_step else f"{after:.4f} with no steps"
    print(f"{args.method} on {args.model}, {len(demos)} demos: loss without dropout {trained}, {seconds:.1f} seconds, "
          f"{adapted.n_trained:,} trained numbers")
    print(f"{args.out}: {Path(args.out).stat().st_size:,} bytes", flush=True)
    if held_out:
        print(f"{source}:")
    for name in dict.fromkeys((args.method, *BASELINES)) if held_out else ():
        try:
            other = adapted if name == args.method else KNOWN[name].adapt(model, task)
            answers = answer(other, tokenizer, held_out, **how)
            print(f"  {name:14} {score(held_out, answers, args.metric):6.1%}", flush=True)
        except NotFinite:
            raise
        except ValueError as error:  # methods of single pairs can take more demos than ICL can read
            print(f"  {name:14} cannot be scored: {error}")


def read_how(context):
    """`about` of a saved context, and how it answers: the last arguments of `answer`."""
    about = read_about(context)
    how = {name: about.get(name) for name in ("template", "metric", "max_new_tokens")}
    longest = how["max_new_tokens"]
    if type(how["template"]) is not str or how["metric"] not in METRICS or type(longest) is not int or longest < 1:
        raise ValueError(f"{context} was saved without a template, or with {longest!r:.40} as its max_new_tokens: "
                         "give a context that nanoct.tune wrote.")
    return about, how | dict(chat=about.get("chat") is True)


def load_saved(args, about):
    """The Adapted of --context, and its tokenizer. about: of read_how."""
    own = str(about.get("name"))
    model, tokenizer = load(args.model or (own if Path(own).is_dir() else default_model()), args.device)
    adapted, _ = load_adapted(args.context, model, tokenizer)
    return adapted, tokenizer


def ask(args):
    """Answer questions that are typed, or come from a pipe, a line each, until the input ends."""
    about, how = read_how(args.context)
    need_options([Line("a typed question", "")], how["metric"])
    adapted, tokenizer = load_saved(args, about)
    if hasattr(sys.stdin, "reconfigure"):  # a line that is no text spoils that question alone
        sys.stdin.reconfigure(errors="replace")
    while question := read_question():
        try:
            ((text, _),) = answer(adapted, tokenizer, [Line("the question", question.rstrip("\n"))], **how)
            print(text, flush=True)
        except NotFinite:
            raise
        except ValueError as error:  # the next question may be a better one
            print(f"error: {error}", file=sys.stderr)


def read_question():
    """The next line that is not blank; "" at the end. A person at a terminal gets a prompt."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if line.strip() or not line:
            return line


def predict(args):
    """Answer the lines of --data with a saved context; the score, if they have outputs, goes to stderr."""
    about, how = read_how(args.context)
    lines = read_lines(args.data, need_output=False)
    need_options(lines, how["metric"])
    adapted, tokenizer = load_saved(args, about)
    answers = answer(adapted, tokenizer, lines, **how)
    text = ""
    for line, (prediction, losses) in zip(lines, answers):
        given = {}
        if line.output is not None:  # of options that tie, the one that is shown
            (right,) = judged([line], [(prediction, {})], how["metric"]).per_query
            given = dict(output=line.output, right=right)
        row = dict(input=line.input, prediction=prediction, **given, **(dict(losses=losses) if losses else {}))
        text += written(row) + "\n"
    if args.out:
        replace_file(args.out, text.encode())
    else:
        print(text, end="")
    if n := sum(line.output is not None for line in lines):
        print(f"{score(lines, answers, how['metric']):.1%} on {n} lines with an output", file=sys.stderr)


def written(row):
    """A row as JSON, escaped if it holds half a surrogate pair, which UTF-8 lacks."""
    text = json.dumps(row, ensure_ascii=False)
    return json.dumps(row) if any("\ud800" <= c <= "\udfff" for c in text) else text


def parse():
    p = cli.Parser(prog="nanoct tune", description=__doc__)
    p.add_argument("--data", metavar="FILE.jsonl", help='lines {"input", "output", "options"?}: the '
                   "demos; with --predict the questions, whose output may be missing")
    p.add_argument("--out", metavar="FILE", help="the context; with --predict the answers, default: stdout")
    p.add_argument("--force", action="store_true", help="overwrite --out")
    p.add_argument("--model", help="folder or hub name; default: weights/smollm2 where `make smollm2` has put it, else "
                   "weights/nano/strings, which knows the letters a to p and no English; with --predict the context's")
    p.add_argument("--device", help="cuda, mps or cpu; default: the first there is")
    t = p.add_argument_group("tuning")
    t.add_argument("--method", choices=list(KNOWN), metavar="METHOD", help=f"{', '.join(KNOWN)}; default: ct_kv")
    t.add_argument("--set", action="extend", nargs="+", metavar="FIELD=VALUE",
                   help="of the method's Config, such as lr=1e-2")
    t.add_argument("--held-out", metavar="FILE.jsonl", help="lines to score the context on, beside ICL and zero-shot; "
                   f"default: a fifth of --data if it has {ENOUGH} lines or more; {NONE}: no lines")
    t.add_argument("--template", help=f"text of a line with {{input}} and {{output}}, \\n and \\t understood; default: "
                   f"{EMBEDDED!r} with the built-in vocabulary, else {PLAIN!r}")
    t.add_argument("--chat", action="store_true", default=None, help="write demos and questions as the model's chat "
                   "template does, with the instruction as the system message")
    t.add_argument("--instruction", help=f"text at the head of the context, behind the tokenizer's BOS if it has one "
                   f"({BOS} in the built-in vocabulary); default: none")
    t.add_argument("--metric", choices=METRICS[1:], help="accuracy and macro_f1 choose among options, text "
                   "decodes; default: accuracy for lines with options, text for those without")
    t.add_argument("--seed", type=int, help="of what the method draws; default: 0")
    a = p.add_argument_group("answering")
    a.add_argument("--predict", action="store_true", help='print lines {"input", "prediction"}, with "losses" of '
                   'options and, where the output is given, "right"')
    a.add_argument("--ask", action="store_true", help="answer the questions that you type, or lines from a pipe")
    a.add_argument("--context", metavar="FILE.safetensors", help="what tuning wrote")
    args = p.parse_args()
    tuning = dict(method="ct_kv", set=[], held_out=None, template=None, chat=False, instruction="", metric=None, seed=0)
    answers = "--ask" if args.ask else "--predict" if args.predict else None
    if answers and (given := [name for name in tuning if getattr(args, name) is not None]):
        option = "--" + given[0].replace("_", "-")
        raise ValueError(f"{option} is for tuning; {answers} does as its context says: leave {option} out.")
    if answers and not args.context:
        raise ValueError(f"{answers} needs a --context: a file that tuning wrote with --out.")
    if args.ask and (args.predict or args.data or args.out):
        raise ValueError("--ask reads what you type and prints the answers: leave --predict, --data and --out out.")
    if not answers and (args.context or not args.out):
        raise ValueError("tuning needs --out, the file for the context." if not args.context else
                         "--context is for --predict and --ask: add one, or leave the context out to tune a new one.")
    if not (args.data or args.ask):
        raise ValueError("--data is missing: give a file of examples, or with --predict one of questions.")
    if args.chat and args.template is not None:
        raise ValueError("--chat takes the template of the model: leave --template out, or --chat.")
    for name, default in tuning.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    args.template, args.instruction = args.template and unescape(args.template), unescape(args.instruction)
    return args


def main():
    args = parse()
    read = args.data, args.held_out, args.context
    try:
        with claimed(args.out, args.force, *read) if args.out else nullcontext():
            if args.ask:
                ask(args)
            else:
                predict(args) if args.predict else tune(args)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("" if args.ask else
                                "\nstopped; the context is saved if its size stands above") from None


if __name__ == "__main__":
    cli.run(main)
