"""What attention kernels do wrong in silence: the default one against a softmax written out, with gradients."""

from functools import partial

import pytest
import torch

from nanoct.model import alike, attend


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


def attention_errors(kernel, device, dtype):
    """The largest errors of output and gradients of q, k, v and a float32 prefix, against plain() in float64."""
    g = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 12, 16), *[(1, 2, 12, 16)] * 2, *[(1, 2, 20, 16)] * 2]
    exact = [torch.randn(shape, generator=g).to(dtype).double() for shape in shapes]
    hidden = torch.rand(1, 1, 12, 32, generator=g) < 0.4
    hidden[..., 20:] |= ~torch.ones(12, 12, dtype=torch.bool).tril()
    hidden[..., 20:].diagonal(dim1=-2, dim2=-1).fill_(False)
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
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_gradients_of_the_default_kernel_are_those_of_the_plain_one(device, dtype, tolerance):
    """One cuDNN kernel read a mask of another dtype than the queries wrongly, and raised nothing."""
    assert max(attention_errors(attend, device, dtype)) < tolerance


def test_a_merge_without_the_gradient_of_the_log_sum_exp_shows():
    """It has the right output; torch's varlen_attn drops that gradient and says nothing."""
    assert max(attention_errors(merged, "cpu", torch.float32)) < 1e-5
    output, *gradients = attention_errors(partial(merged, attached=False), "cpu", torch.float32)
    assert output < 1e-5 and max(gradients) > 0.1
