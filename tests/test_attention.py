"""What attention kernels do wrong in silence: the default one against a softmax written out, with gradients."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import random_task, tiny_llama

from nanoct.methods import KNOWN
from nanoct.model import alike, attend
from nanoct.score import evaluate, generate


def merged(q, k, v, mask, past, attached=True):
    """attend with prefix and row apart, merged by their log-sum-exp; attached: with the gradient of that."""

    def part(k, v, mask):
        k, v = alike(k, q.shape[1]).to(q.dtype), alike(v, q.shape[1]).to(q.dtype)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask
        return scores.softmax(-1) @ v, scores.logsumexp(-1, keepdim=True)

    P = past[0].shape[2]
    parts = part(*past, mask[..., :P]), part(k, v, mask[..., P:])
    share = torch.stack([lse if attached else lse.detach() for _, lse in parts]).softmax(0)
    return (share[0] * parts[0][0] + share[1] * parts[1][0]).transpose(1, 2).flatten(2)


def plain(q, k, v, mask, past):
    """attend written out: one softmax over all scores."""
    k, v = (alike(torch.cat([before.to(q.dtype), now], 2), q.shape[1]) for before, now in zip(past, (k, v)))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def attention_errors(kernel, device, dtype, T=12, P=20, D=16):
    """The largest errors of output and gradients of q, k, v and a float32 prefix, against plain() in float64."""
    g = torch.Generator().manual_seed(0)
    shapes = [(1, 4, T, D), *[(1, 2, T, D)] * 2, *[(1, 2, P, D)] * 2]
    exact = [torch.randn(shape, generator=g).to(dtype).double() for shape in shapes]
    hidden = torch.rand(1, 1, T, P + T, generator=g) < 0.4
    hidden[..., P:] |= ~torch.ones(T, T, dtype=torch.bool).tril()
    hidden[..., P:].diagonal(dim1=-2, dim2=-1).fill_(False)
    mask, found = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf), []
    dtypes = [dtype] * 3 + [torch.float32] * 2
    for attention, where, types in [(plain, "cpu", [torch.float64] * 5), (kernel, device, dtypes)]:
        q, k, v, *past = leaves = [x.to(where, t).requires_grad_() for x, t in zip(exact, types)]
        y = attention(q, k, v, mask.to(where, q.dtype), past)
        weights = torch.linspace(-1, 1, y.numel(), device=where).view_as(y)
        gradients = torch.autograd.grad((y.double() * weights).sum(), leaves)
        found.append([part.detach().cpu().double() for part in (y, *gradients)])
    return [((ours - wanted).abs().max() / wanted.abs().max()).item() for wanted, ours in zip(*found, strict=True)]


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("T, P, D", [(12, 20, 16), (67, 130, 64), (128, 256, 128)])  # kernels differ in what they take
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_gradients_of_the_default_kernel_are_those_of_the_plain_one(device, dtype, tolerance, T, P, D):
    """One cuDNN kernel read a mask of another dtype than the queries wrongly, and raised nothing."""
    assert max(attention_errors(attend, device, dtype, T, P, D)) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KNOWN)
def test_every_mask_has_the_dtype_of_its_queries(monkeypatch, name, dtype):
    """In tuning behind a float32 cache, in scoring, and in decoding prompts of several lengths."""
    model, task, seen, kernel = tiny_llama(dtype), random_task(n_query=3), [], F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, **options):
        seen.append((q.dtype, k.dtype, v.dtype, q.dtype if attn_mask is None else attn_mask.dtype))
        return kernel(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    short = {field: 1 for field in ("n_step", "ttt_n_step", "rank", "batch") if hasattr(KNOWN[name].Config, field)}
    adapted = KNOWN[name].adapt(model, task, KNOWN[name].Config(**short))
    evaluate(adapted, task)
    generate(adapted, [[1], [2, 3, 4]], 2)
    assert len(seen) > 4 and {part for call in seen for part in call} == {dtype}


def test_a_merge_without_the_gradient_of_the_log_sum_exp_shows():
    """It has the right output; torch's varlen_attn drops that gradient and says nothing."""
    assert max(attention_errors(merged, "cpu", torch.float32)) < 1e-5
    output, *gradients = attention_errors(partial(merged, attached=False), "cpu", torch.float32)
    assert output < 1e-5 and max(gradients) > 0.1
