"""The vectors: the package's own methods reproduce them in float32 and bfloat16, and methods with a fault do not."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from nanoct import adapters, cli, conformance, packing
from nanoct.conformance import ALPHA, BATCH, DROPOUT, LENGTHS, N_PREFIX, N_STEP, PAGE, RANK, neighbours
from nanoct.conformance import METHODS as OF_THE_PAPER
from nanoct.fewshot import Demo, Query, Task, encode_context
from nanoct.io.weights import load_model
from nanoct.methods import KNOWN, METHODS, ct_kv, ct_prompt, lara, prune, ttt, windows
from nanoct.packing import answer_logits, pack, visible
from nanoct.score import score_pairs

LR = conformance.LR | neighbours.LR
TRAINED = [*OF_THE_PAPER, "anchors", "ia3", "qttt", "cpt", "i2cl"]
SEARCHING = "prune", "lara"  # in bfloat16 they may take another way at a near tie
SETTINGS = dict(leave_one_out=True, momentum=neighbours.MOMENTUM, decay=neighbours.DECAY, epsilon=neighbours.EPSILON,
                format_epsilon=neighbours.FORMAT_EPSILON, sigma=neighbours.SIGMA, size=1, noise=0.0,
                vector=neighbours.VECTOR)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return conformance.write(tmp_path_factory.mktemp("vectors") / "new", more=neighbours.MAP).parent


@pytest.fixture(scope="session")
def files(folder):
    return {file.stem: load_file(file) for file in folder.glob("*.safetensors")}


def error(got, want):
    """|got - want| / |want|, the root of the sum of squares over all numbers of a tensor."""
    assert got.shape == want.shape
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def read_task(t):
    ids = lambda name: t[name].tolist()
    n_demo, n_query = (len({name.split(".")[1] for name in t if name.startswith(kind)}) for kind in ("demo", "query"))
    demos = [Demo(ids(f"demo.{i}.x"), ids(f"demo.{i}.y")) for i in range(n_demo)]
    options = [[ids(name) for name in sorted(t) if name.startswith(f"query.{i}.option")] for i in range(n_query)]
    queries = [Query(ids(f"query.{i}.x"), options[i][0], options[i]) for i in range(n_query)]
    return Task("vectors", demos, queries, instruction=ids("instruction"), metric="accuracy")


def pairs_of(task):
    return [(demo.x, demo.y) for demo in task.demos]


def our_packing(model, task, want):
    context = encode_context(model, task.instruction, task.demos)
    row = pack(pairs_of(task), model, context.next_position)
    keys, values = context.stack()
    seen = visible(context.owner, len(task.demos))
    logits = answer_logits(model, row, context, mask=row.mask(seen))
    return dict(tokens=row.tokens[0], positions=row.positions[0], pair=row.pair, where=row.where, target=row.target,
                keys=keys, values=values, logits=logits, mask=row.mask(seen)[0],
                loss=F.cross_entropy(logits, row.target))


def our_hiding(model, task, want):
    """Under the masks that are given: the losses, and each pair's gradients."""
    context = encode_context(model, task.instruction, task.demos)
    row = pack(pairs_of(task), model, context.next_position)
    leaves = [part.float().requires_grad_() for part in context.stack()]
    found = {name: [] for name in ("seen", "mask", "loss", "pair_loss", "keys.grad", "values.grad")}
    for seen in want["seen"]:
        mask = row.mask(seen)
        loss = F.cross_entropy(answer_logits(model, row, context.of(*leaves), mask=mask), row.target, reduction="none")
        of_pair = torch.stack([loss[row.pair[row.where] == i].sum() for i in range(len(task.demos))])
        gradients = zip(*(torch.autograd.grad(one, leaves, retain_graph=True) for one in of_pair))
        for name, value in dict(seen=seen, mask=mask[0], loss=loss.mean(), pair_loss=of_pair).items():
            found[name].append(value.detach())
        for name, part in zip(("keys.grad", "values.grad"), gradients):
            found[name].append(torch.stack(part))
    return {name: torch.stack(part) for name, part in found.items()}


def our_method(name, model, task, want, steps, monkeypatch):
    """The method itself, with the masks, orders and starts that are given in place of what it would draw."""
    names = [key.removesuffix(".grad") for key in want if key.endswith(".grad")]
    if "seen" in want:
        seen = iter(want["seen"])
        monkeypatch.setattr(METHODS[name], "visible", lambda *_, **__: next(seen))
    if "orders" in want:
        orders, sequences = iter(want["orders"].tolist()), ttt.sequences
        monkeypatch.setattr(ttt, "sequences", lambda model, instruction, _, separator: sequences(
            model, instruction, [[task.demos[i] for i in order] for order in next(orders)], separator))
    attach = adapters.attach

    def attach_given(*args, **options):
        adapter = attach(*args, **options)
        names.clear()
        for layer, part in adapter.items():
            part.a.data.copy_(want[f"{layer}.a"][0])
            names.extend(f"{layer}.{leaf}" for leaf in part.state())
        return adapter

    monkeypatch.setattr(adapters, "attach", attach_given)
    Config, losses = KNOWN[name].Config, []
    changes = SETTINGS | dict(n_step=N_STEP, lr=LR[name], n_prefix=N_PREFIX, rank=RANK, alpha=ALPHA, dropout=0.0,
                              batch=BATCH)
    config = Config(**{key: value for key, value in changes.items() if key in Config.__dataclass_fields__})
    steps.clear()
    adapted = KNOWN[name].adapt(model, task, config, progress=lambda _, loss: losses.append(loss))
    if name in neighbours.MAP and adapted.adapter:
        names = [f"{layer}.{leaf}" for layer, part in adapted.adapter.items() for leaf in part.state()
                 if leaf != "vector"]
    found = dict(loss=torch.tensor(losses), lr=torch.tensor([step["lr"] for step in steps]),
                 norm=torch.stack([torch.stack([g.norm() for g in step["raw"]]).norm() for step in steps]))
    for i, leaf in enumerate(names):
        found[leaf] = torch.stack([*(step["before"][i] for step in steps), steps[-1]["after"][i]])
        found[f"{leaf}.grad"] = torch.stack([step["raw"][i] for step in steps])
    for key in {"embeds", "embeds.grad", "offset", "offset.grad"} & found.keys():
        found[key] = found[key][:, 0]
    found |= {f"{layer}.vector": part.vector for layer, part in (adapted.adapter or {}).items()
              if hasattr(part, "vector")}
    return found | scored(adapted, task) | {given: want[given] for given in ("seen", "orders") if given in want}


def scored(adapted, task):
    nats, _ = score_pairs(adapted, [(q.x, option) for q in task.queries for option in q.options])
    nats = nats.view(len(task.queries), -1)
    return dict(scores=nats, chosen=nats.argmin(dim=1))


def our_neighbour(name, model, task, want, monkeypatch):
    """A method that has no gradient."""
    config = {key: value for key, value in (SETTINGS | dict(n_step=N_STEP, lr=LR.get(name))).items()
              if key in KNOWN[name].Config.__dataclass_fields__}
    if name == "windows":
        found = {}
        for kind in ("plain", "structured"):
            adapted = windows.adapt(model, task, windows.Config(size=1, structured=kind == "structured"))
            keys, values = adapted.prefix.stack()
            of_kind = dict(keys=keys, values=values) | scored(adapted, task)
            found |= {f"{kind}.{key}": value for key, value in of_kind.items()}
        return found
    tried, cross_entropy, given = [], F.cross_entropy, iter(want.get("changes", ()))
    monkeypatch.setattr(prune.F, "cross_entropy", lambda *args, **rest: tried.append(
        found := cross_entropy(*args, **rest)) or found)
    if name == "lara":
        monkeypatch.setattr(lara.torch, "randn", lambda *_, **__: next(given).clone())
    losses = []
    config["n_step"] = 1 if name == "prune" else N_STEP
    config = KNOWN[name].Config(**config)
    adapted = KNOWN[name].adapt(model, task, config, progress=lambda _, loss: losses.append(loss))
    monkeypatch.undo()
    found = scored(adapted, task)
    if name == "deep_thinking":
        return found | dict(zip(("keys", "values"), adapted.prefix.stack()))
    if name == "prune":
        owner, kept = encode_context(model, task.instruction, task.demos).owner, want["kept"]
        kept = kept if torch.equal(owner[kept], adapted.prefix.owner) else ~kept
        return found | dict(kept=kept, tried=torch.stack(tried))
    start = torch.stack(tried[:2]).sum() / sum(m for _, m in LENGTHS)
    return found | dict(changes=want["changes"], loss=torch.tensor([start, *losses]),
                        weights=torch.tensor([weight for weight, _ in adapted.prefix.parts]))


def ours(name, model, files, steps, monkeypatch):
    task, want = read_task(files["task"]), files[name]
    with monkeypatch.context() as patch:
        if name in neighbours.MAP and name not in TRAINED:
            return our_neighbour(name, model, task, want, patch)
        if name in KNOWN:
            return our_method(name, model, task, want, steps, patch)
        return (our_packing if name == "packing" else our_hiding)(model, task, want)


def misses():
    """The function that the page prints."""
    found = {"torch": torch}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[1], found)
    return found["misses"]


misses = misses()
EVERY = ["packing", "leave_one_out", "dropout", *OF_THE_PAPER, *neighbours.MAP]


@pytest.fixture(scope="session")
def models(folder):
    return {dtype: load_model(folder / "model", "cpu", dtype) for dtype in (torch.float32, torch.bfloat16)}


@pytest.mark.parametrize("name, dtype", [(name, torch.float32) for name in EVERY] + [
    (name, torch.bfloat16) for name in EVERY if name not in SEARCHING], ids=str)
def test_our_methods_reproduce_every_vector(files, models, steps, monkeypatch, name, dtype):
    got, want = ours(name, models[dtype], files, steps, monkeypatch), files[name]
    assert got.keys() == want.keys()
    assert misses(got, want, dtype == torch.bfloat16) == []
    if name in ("leave_one_out", "dropout"):
        owner = files["task"]["owner"]
        for key in ("keys.grad", "values.grad"):
            for i in range(len(want["seen"][0])):
                hidden = want[key][0, i][..., owner == i, :]
                assert not hidden.any() and not got[key][0, i][..., owner == i, :].any()


def test_the_first_masks_are_leave_one_out(files):
    owner = files["task"]["owner"]
    k = len(files["leave_one_out"]["seen"][0])
    assert torch.equal(visible(owner, k, leave_one_out=True), files["leave_one_out"]["seen"][0])
    for name in ("dropout", "ct_kv", "ct_prompt"):
        seen = files[name]["seen"]
        assert not (seen & ~files["leave_one_out"]["seen"]).any()  # and more is hidden:
        assert all((one != files["leave_one_out"]["seen"][0]).any() for one in seen)


# --- what is wrong misses: each of these takes the vectors' place, or the package's, and says how ---


def flip(patch, want, owner):
    """One entry of the mask of one pair in one step."""
    want["seen"] = want["seen"].clone()
    want["seen"][0, 0, 0] ^= True


def own_demo_visible(patch, want, owner):
    want["seen"] = want["seen"] | (torch.arange(want["seen"].shape[1])[:, None] == owner)


def row_changed(change):
    def plant(patch, want, owner):
        patch.setattr(ct_kv, "pack_demos", lambda task, model, start: change(
            lambda start: pack(pairs_of(task), model, start), start))

    return plant


def and_x(pack, start):
    """The row with a loss on x too."""
    row = pack(start)
    inside = (row.pair[1:] == row.pair[:-1]).nonzero().flatten()
    answers = dict(zip(row.where.tolist(), row.target.tolist()))
    target = {**dict(zip(inside.tolist(), row.tokens[0, inside + 1].tolist())), **answers}
    where, target = map(torch.tensor, zip(*sorted(target.items())))
    return packing.Row(row.tokens, row.positions, row.pair, where, target)


def rescaled(patch, want, owner):
    """What is left after dropout is scaled up."""
    logits = ct_kv.answer_logits
    larger = lambda prefix: prefix.of(prefix.stack()[0], prefix.stack()[1] / (1 - DROPOUT))
    patch.setattr(ct_kv, "answer_logits", lambda model, row, prefix, *rest: logits(model, row, larger(prefix), *rest))


def mean_of_pairs(patch, want, owner):
    n = torch.tensor([float(m) for _, m in LENGTHS for _ in range(m)])
    loss = lambda logits, target: (F.cross_entropy(logits, target, reduction="none") / n).sum() / len(LENGTHS)
    patch.setattr(ct_kv, "F", SimpleNamespace(cross_entropy=loss))


def clipped_at(norm):
    def plant(patch, want, owner):
        clip = torch.nn.utils.clip_grad_norm_  # conftest's, which keeps a record
        patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda leaves, _: clip(leaves, norm))

    return plant


def no_cosine(patch, want, owner):
    patch.setattr(torch.optim.lr_scheduler, "CosineAnnealingLR",
                  lambda optimizer, n: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))


def one_prompt(patch, want, owner):
    """CT-Prompt in one pass: hidden from the pair, shown by later entries of the prompt."""
    read = ct_prompt.read
    patch.setattr(ct_prompt, "read", lambda *rest: read(*rest[:4], True))


def alpha_alone(patch, want, owner):
    """alpha in place of alpha / rank."""
    init = adapters.LoRA.__init__
    patch.setattr(adapters.LoRA, "__init__", lambda self, weight, rank, alpha, *rest: init(
        self, weight, rank, alpha * rank, *rest))


def norm_in_the_backward_pass(patch, want, owner):
    patch.setattr(adapters.DoRA, "__call__", lambda self, x, weight: F.linear(
        x, self.magnitude[:, None] * F.normalize(weight + self.scale * self.b @ self.a)))


def reversed_orders(patch, want, owner):
    want["orders"] = want["orders"].flip(-1)


FAULTS = [
    *((name, flip) for name in ("leave_one_out", "dropout", "ct_kv", "ct_prompt")),
    *((name, own_demo_visible) for name in ("leave_one_out", "dropout", "ct_kv", "ct_prompt")),
    ("ct_kv", row_changed(lambda pack, start: pack(0))), ("ct_kv", row_changed(lambda pack, start: pack(start + 1))),
    ("ct_kv", row_changed(and_x)), ("ct_kv", rescaled), ("ct_kv", mean_of_pairs),
    ("ct_kv", clipped_at(0.5)), ("ct_kv", clipped_at(1e9)), ("lora", clipped_at(1e9)),
    *((name, no_cosine) for name in TRAINED), ("ct_prompt", one_prompt), ("lora", alpha_alone), ("dora", alpha_alone),
    ("dora", norm_in_the_backward_pass), ("ttt", reversed_orders),
]


@pytest.mark.parametrize("name, plant", FAULTS)
def test_a_fault_misses(files, models, steps, monkeypatch, name, plant):
    wanted, given = files[name], dict(files[name])
    with monkeypatch.context() as patch:
        plant(patch, given, files["task"]["owner"])
        got = ours(name, models[torch.float32], files | {name: given}, steps, monkeypatch)
    assert set(misses(got, wanted)) - {"seen", "mask", "orders", "lr"}


@pytest.mark.parametrize("name", EVERY)
def test_every_vector_counts(files, name):
    """What is off by one part in a hundred, by one id, or by one truth value, is a miss, and is named."""
    assert misses(files[name], files[name]) == []
    for key, tensor in files[name].items():
        want = {other: files[name][other] for other in (key, f"{key}.grad", "lr") if other in files[name]}
        off = tensor.clone()
        if off.is_floating_point():
            off *= 1.01
        else:
            off.view(-1)[-1] = not off.view(-1)[-1] if off.dtype == torch.bool else off.view(-1)[-1] + 1
        assert misses(want | {key: off}, want) == [key] and misses(want | {key: off[None]}, want) == [key]
        if off.is_floating_point():
            assert misses(want | {key: torch.full_like(off, torch.nan)}, want) == [key]


def test_the_reference_is_transformers_in_float64(folder, files):
    """The same logits from a model of another house."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float64)
    weights = {key: value.double() for key, value in theirs.state_dict().items()}
    x, y = files["task"]["context"].tolist(), [3, 1, 4]
    with torch.no_grad():
        expected = theirs(torch.tensor([x + y])).logits[0, -len(y) - 1:-1]
    torch.testing.assert_close(conformance.answer(weights, x, y), expected, rtol=1e-5, atol=1e-5)  # RoPE in float32


# --- the command ---


def test_the_page_names_every_tensor_and_file(files):
    page = PAGE.read_text(encoding="utf-8")
    for name, tensors in files.items():
        assert f"`{name}`" in page
        for key in tensors:
            last = re.sub(r"\d+", "I", key).split(".")[-1]
            assert re.search(rf"`[\w.…]*{last}`|`[\w.…]*\.J`", page) if last == "I" else last in page, key


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nanoct.conformance", *arguments])
    cli.run(lambda: conformance.main(neighbours.MAP))


@pytest.mark.slow
def test_a_seed_gives_the_same_bytes(folder, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--out", str(tmp_path / "again"))
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert names == sorted(str(file.relative_to(tmp_path / "again")) for file in (tmp_path / "again").rglob("*")
                           if file.is_file())
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    assert sum((folder / name).stat().st_size for name in names) < 3e6
    assert "README.md first" in capsys.readouterr().out


@pytest.mark.parametrize("make, said", [
    (lambda out: out.write_text("mine"), "is a file"),
    (lambda out: out.joinpath("mine").mkdir(parents=True), "not empty"),
])
def test_what_is_there_stays(tmp_path, monkeypatch, capsys, make, said):
    make(tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--out", str(tmp_path / "out"))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and said in error and "new or empty" in error
