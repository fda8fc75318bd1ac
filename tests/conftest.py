"""What the tests share: a tiny random Llama and a task of random ids."""

import pytest
import torch

from nanoct.fewshot import Demo, Query, Task
from nanoct.model import Llama, LlamaConfig

torch.set_num_threads(1)
V = 23  # vocabulary of the tiny model


def tiny_llama(dtype=torch.float32, seed=0, **changes):
    """A frozen Llama whose weights are large enough for every term to show in the logits."""
    sizes = dict(vocab_size=V, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, head_dim=6, n_ffn=24, n_position=160)
    model = Llama(LlamaConfig(**sizes | changes)).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.uniform_(0.5, 1.5, generator=generator) if p.dim() == 1 else p.normal_(std=0.4, generator=generator)
    return model.to(dtype)


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


@pytest.fixture(scope="session")
def model():
    return tiny_llama()
