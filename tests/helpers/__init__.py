"""What the tests share: tiny random models, tasks of random ids, the slow loss, and lines of results."""

import json
from dataclasses import fields
from itertools import chain
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F

from nanoct.benchmarks import nano
from nanoct.fewshot import Demo, Prefix, Query, Task
from nanoct.io.weights import save_model
from nanoct.methods import METHODS
from nanoct.model import Llama, LlamaConfig
from nanoct.runs import report, stats

DATA = Path(__file__).parents[3] / "shared" / "data"  # public files; tests that need them skip without
V = 23  # vocabulary of the tiny model
UNEVEN = ((1, 1), (19, 2), (3, 11), (2, 1), (7, 5))  # lengths of x and y
TUNED = [name for name, method in METHODS.items() if "n_step" in {f.name for f in fields(method.Config)}]


def tiny_llama(dtype=torch.float32, seed=0, **changes):
    """A frozen Llama whose weights are large enough for every term to show in the logits."""
    sizes = dict(vocab_size=V, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, head_dim=6, n_ffn=24, n_position=160)
    model = Llama(LlamaConfig(**sizes | changes)).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.uniform_(0.5, 1.5, generator=generator) if p.dim() == 1 else p.normal_(std=0.4, generator=generator)
    return model.to(dtype)


def float64_llama(**changes):
    model = tiny_llama(torch.float64, **changes)
    model.logits = lambda hidden: F.linear(hidden, model.model.embed_tokens.weight)  # the model's own are float32
    return model


def random_ids(n, generator, vocab_size=V):
    return torch.randint(vocab_size, (n,), generator=generator).tolist()


def random_task(lengths=((3, 2), (5, 1), (2, 4), (6, 3)), n_query=5, instruction=2, options=0, seed=0, **fields):
    """Demos of the given lengths (of x, of y), n_query queries, and so many options each."""
    g = torch.Generator().manual_seed(seed)
    demos = [Demo(random_ids(n, g), random_ids(m, g)) for n, m in lengths]
    queries = []
    for i in range(n_query):
        x, answers = random_ids(2 + i % 3, g), [random_ids(1 + (i + j) % 3, g) for j in range(max(options, 1))]
        queries.append(Query(x, answers[i % len(answers)], answers if options else None))
    return Task("random", demos, queries, instruction=random_ids(instruction, g), **fields)


def interval(values):
    """Mean and half width of its 95% confidence interval, Student's t."""
    return mean(values), stats.student(len(values)) * stats.standard_error(values)


def pairs_of(task):
    return [(demo.x, demo.y) for demo in task.demos]


def leaves(prefix):
    """Trainable copies of the keys and values, per layer, and the prefix made of them."""
    leaf = lambda part: part.clone(memory_format=torch.contiguous_format).requires_grad_()
    kv = [tuple(map(leaf, layer)) for layer in prefix.kv]
    return [part for layer in kv for part in layer], Prefix(kv, prefix.owner, prefix.next_position)


def padded_loss(model, prefix, pairs, seen, adapter=None):
    """The slow version, as the released code does it: k right-padded rows, k copies of the prefix, a mask per row.

    Loss: the mean over the answer tokens of all rows, the others have the label -100.
    """
    k, P = seen.shape
    T = max(len(x) + len(y) for x, y in pairs)
    tokens, labels = torch.zeros(k, T, dtype=torch.int64), torch.full((k, T), -100)
    real = torch.zeros(k, T, dtype=torch.bool)
    for i, (x, y) in enumerate(pairs):
        n = len(x) + len(y)
        tokens[i, :n], real[i, :n] = torch.tensor([*x, *y]), True
        labels[i, len(x) : n] = torch.tensor(y)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    mask = torch.cat([seen[:, None].expand(k, T, P), causal & real[:, None]], dim=2)
    copies = Prefix([tuple(part.expand(k, -1, -1, -1) for part in layer) for layer in prefix.kv], None, P)
    positions = torch.arange(P, P + T).expand(k, T)
    logits = model.logits(model(tokens, positions=positions, mask=mask, prefix=copies, adapter=adapter)[0])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def drawn(generator, k, owner, dropout, leave_one_out):
    """What each of k pairs sees of the entries, (k, P), with the draws that a method makes."""
    seen = torch.rand(k, len(owner), generator=generator) >= dropout if dropout else torch.ones(k, len(owner)).bool()
    return seen & (torch.arange(k)[:, None] != owner) if leave_one_out else seen


def config_of(method, **changes):
    names = {f.name for f in fields(method.Config)}
    return method.Config(**{name: value for name, value in changes.items() if name in names})


def tensors_of(adapted):
    """Everything that (phi, theta) adds to the model."""
    parts = [t for part in (adapted.adapter or {}).values() for t in vars(part).values() if isinstance(t, torch.Tensor)]
    return parts + list(chain.from_iterable(adapted.prefix.kv if adapted.prefix else []))


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))


def relative_error(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def message(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def saved_llama(folder, vocab_size=256, n_position=256):
    """A small random Llama in a folder; with the size of its tokenizer "bytes"."""
    config = LlamaConfig(vocab_size, 1, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, n_ffn=16, n_position=n_position)
    save_model(Llama(config).init_weights(torch.Generator().manual_seed(0)), folder)
    return folder


def saved_nano(folder):
    """The same of the built-in vocabulary, with it."""
    saved_llama(folder, len(nano.VOCABULARY), 512)
    (folder / "vocab.json").write_text(json.dumps(nano.VOCABULARY))
    return folder


def small_bbh(folder, n=6):
    """Three tasks of BBH of n examples each, in a folder."""
    for name in "bbh", "cot-prompts":
        (folder / name).mkdir()
    for task in "sums", "words", "long":
        examples = [dict(input=f"{task} {i}" + " long" * 50 * (task == "long"), target="ab"[i % 2]) for i in range(n)]
        (folder / "bbh" / f"{task}.json").write_text(json.dumps(dict(examples=examples)))
        (folder / "cot-prompts" / f"{task}.txt").write_text("-----\nGo on.\n")
    return folder


def line(method="icl", task="a", seed=0, score=0.5, seconds=1.0, config=None, world="strings", kl=0.1, k=10, wrong=0.0):
    return dict(model="m", world=world, pool="held_out", k=k, method=method, config=config or {}, task=task, seed=seed,
                wrong=wrong, score=score, seconds=seconds, n_trained=0, kl=kl)


def text_of(lines, presets, *pairs):
    return report.text(*report.comparable(lines), presets, *pairs)
