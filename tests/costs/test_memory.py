"""Estimated against allocated bytes of every method, in two layouts and two formats; FLOPs against torch's count."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers import config_of
from helpers import random_task as task_with_queries
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanoct.benchmarks.presets import SETTINGS
from nanoct.costs import memory
from nanoct.costs.forecast import lengths_of
from nanoct.costs.memory import Lengths, estimate, measure
from nanoct.costs.task import random_task
from nanoct.fewshot import Text
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.io.files import read_json_lines
from nanoct.methods import METHODS, icl
from nanoct.model import Llama, LlamaConfig
from nanoct.score import evaluate

H100 = Path(__file__).parents[2] / "weights/nano/results/h100"
METHODS_WITH_STEPS = [name for name, method in METHODS.items() if hasattr(method.Config, "n_step")]


def build(kind, dtype=torch.float32):
    sizes = dict(vocab_size=2000, n_layer=3, n_head=8, n_embd=128, n_ffn=352, n_position=600)
    model = GPT2(GPT2Config(**sizes)) if kind == "gpt2" else Llama(LlamaConfig(**sizes, n_kv_head=4, head_dim=16))
    return model.init_weights(torch.Generator().manual_seed(0)).requires_grad_(False).to(dtype)


@pytest.mark.parametrize("kind, dtype", [("llama", torch.float32),
                                         pytest.param("gpt2", torch.float32, marks=pytest.mark.slow),
                                         pytest.param("llama", torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "zero_shot"])
def test_estimated_is_near_what_is_allocated(method, kind, dtype):
    model = build(kind, dtype)
    for model.checkpoint in (False, True) if method in METHODS_WITH_STEPS else (False,):
        guess, measured = measure(method, model, k=8, context=256, n_step=2)
        said = f"checkpoint {model.checkpoint}: {guess / 1e6:.2f} MB for {measured / 1e6:.2f} MB"
        assert 0.87 < guess / measured < 1.17, said


@pytest.mark.parametrize("method, settings", [
    ("prefix_tuning", dict(n_prefix=500)), ("lora", dict(rank=256)), ("ct_kv", {}),
])
def test_what_is_trained_is_held_five_times(method, settings):
    """Where it is most of the memory: more heads than the rest is wide, and few tokens."""
    heads = dict(n_head=16, n_kv_head=16, head_dim=32)
    model = Llama(LlamaConfig(vocab_size=50, n_layer=3, n_embd=32, n_ffn=32, n_position=600, **heads))
    model.init_weights(torch.Generator().manual_seed(0)).requires_grad_(False)
    model.checkpoint = True
    guess, measured = measure(method, model, k=2, context=64, **settings)
    assert 0.85 < guess / measured < 1.15


@pytest.mark.parametrize("method, checkpoint", [
    *(pytest.param(method, False, marks=pytest.mark.slow if method in ("dora", "ttt_ct_kv") else ())
      for method in METHODS_WITH_STEPS), ("ct_kv", True), ("ttt", True),
])
def test_flops_are_those_that_torch_counts(method, checkpoint):
    """Of a step, the difference of two numbers of them: 5% beside, as the formula leaves out adapters' own products;
    16% where activations are recomputed, up to the last that is needed."""
    model, counted, estimated = build("llama"), [], []
    model.checkpoint = checkpoint
    task = random_task(8, 256, model.config.vocab_size)
    lengths = Lengths(0, [(len(d.x), len(d.y)) for d in task.demos], 1)
    for n in (1, 2):
        config = config_of(METHODS[method], n_step=n, ttt_n_step=n, rank=1)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            METHODS[method].adapt(model, task, config)
        counted.append(counter.get_total_flops())
        estimated.append(estimate(model.config, method, asdict(config), lengths, checkpoint=checkpoint).flops)
    assert estimated[1] - estimated[0] == pytest.approx(counted[1] - counted[0], rel=0.16 if checkpoint else 0.05)


@pytest.mark.parametrize("fields", [
    dict(options=3, metric="accuracy"), dict(metric="ids"), dict(metric="text", text=Text(str, "?")),
], ids=str)
def test_flops_of_scoring_are_those_that_torch_counts(fields):
    """Of decoding, where no answer ends before its time, as a random model's does not."""
    model = build("llama")
    task = task_with_queries(n_query=30, instruction=0, **fields)
    adapted, lengths = icl.adapt(model, task, icl.Config()), lengths_of(task)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        evaluate(adapted, task)
    ratio = counter.get_total_flops() / estimate(model.config, "icl", {}, lengths).flops_score
    assert ratio == pytest.approx(1, abs=0.05)


def test_on_cuda_float32_alone_repeats_kv_heads():
    config = LlamaConfig(vocab_size=9, n_layer=3, n_head=8, n_kv_head=2, n_embd=128, head_dim=16, n_ffn=9, n_position=9)
    saved = lambda dtype, cuda: estimate(config, "ct_kv", {}, Lengths(0, [(20, 4)] * 8, 1), dtype, cuda=cuda).saved
    n_key = 8 * 24 + 8 * 23
    assert saved(torch.float32, True) - saved(torch.float32, False) == 4 * 2 * 3 * (8 - 2) * 16 * n_key
    assert saved(torch.bfloat16, True) == saved(torch.bfloat16, False)


@pytest.mark.parametrize("size, least, most", [("llama-3.2-1b", 0.98, 1.17), ("llama-3-8b", 0.8, 1.12)])
def test_estimates_fit_what_an_h100_measured(size, least, most):
    lines = read_json_lines(H100 / size / "costs.jsonl")
    ours = [line for _, line in lines if line["who"] == "nanoct"]
    assert {line["method"] for line in ours} == METHODS.keys() - {"zero_shot"}
    for line in ours:
        task = random_task(line["k"], line["context"], line["config"]["vocab_size"], line["spread"])
        lengths = Lengths(0, [(len(d.x), len(d.y)) for d in task.demos], 1)
        says = estimate(LlamaConfig(**line["config"]), line["method"], SETTINGS["bbh"].get(line["method"], {}), lengths,
                        torch.bfloat16, line["checkpoint"], cuda=True)
        assert least < says.beside / line["peak_bytes"] < most, line["method"]


GB = 10**9


def machine(root, available, cgroup, **files):
    """Folders as Linux has them: /proc, and /sys/fs/cgroup with these files {path: text}."""
    files = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:   {available // 1024} kB\n", "proc/self/cgroup": cgroup,
             **{f"sys/fs/cgroup/{name}": str(text) for name, text in files.items()}}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


STAT = f"anon 7\ninactive_file {GB}\nactive_file {GB}\nslab 9\n"
V2 = {"memory.max": 9 * GB, "memory.current": 5 * GB, "memory.stat": STAT}
V1 = {"memory.limit_in_bytes": 9 * GB, "memory.usage_in_bytes": 5 * GB, "memory.stat": STAT}
inside = lambda folder, files: {f"{folder}/{name}": text for name, text in files.items()}


@pytest.mark.parametrize("cgroup, files, gigabytes", [
    ("0::/\n", {}, 20), ("0::/\n", V2, 6), ("0::/\n", V2 | {"memory.max": "max"}, 20),
    ("0::/\n", V2 | {"memory.max": 90 * GB}, 20), ("0::/\n", V2 | {"memory.current": 12 * GB}, 0),
    ("0::/jobs/7\n", inside("jobs/7", V2), 6), ("0::/jobs/7\n", inside("jobs", V2), 6),  # of the folder above
    ("0::/not/seen/here\n", V2, 6), ("0::/jobs/7\n", inside("jobs/8", V2), 20),  # of another job
    ("9:cpu:/\n4:memory:/jobs/7\n", inside("memory/jobs/7", V1), 6),
    ("4:memory:/jobs\n0::/\n", inside("memory", V1), 6),
    ("4:memory:/\n", inside("memory", V1 | {"memory.limit_in_bytes": 2**63 - 4096}), 20),
])
def test_what_is_free_is_the_least_of_the_machine_and_the_cgroups(cgroup, files, gigabytes, tmp_path, monkeypatch):
    machine(tmp_path, 20 * GB, cgroup, **files)
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert memory.free(torch.device("cpu")) == pytest.approx(gigabytes * GB, abs=1024)


def test_what_is_free_is_not_known_elsewhere(tmp_path, monkeypatch):
    assert 0 < memory.free(torch.device("cpu")) or not Path("/proc/meminfo").exists()
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert memory.free(torch.device("cpu")) == memory.free(torch.device("mps")) == float("inf")


def test_on_a_gpu_what_torch_holds_unused_is_free(monkeypatch):
    for name, number in dict(mem_get_info=(3 * GB, 9 * GB), memory_reserved=4 * GB, memory_allocated=1 * GB).items():
        monkeypatch.setattr(torch.cuda, name, lambda device, number=number: number)
    assert memory.free(torch.device("cuda:0")) == 6 * GB
