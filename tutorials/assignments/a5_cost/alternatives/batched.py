"""Correct, and different: one tensor of shapes for every product of matrices, multiplied by einsum; the fit by QR."""

import torch


def flops_step(c, P, T, n):
    wide, narrow, C, F = c.n_head * c.head_dim, c.n_kv_head * c.head_dim, c.n_embd, c.n_ffn
    shapes = [(T, C, wide), (T, C, narrow), (T, C, narrow), (T, wide, C), (T, C, F), (T, C, F), (T, F, C)] * c.n_layer
    shapes += [(T, wide, P + T)] * 2 * c.n_layer + [(n, C, c.vocab_size)]  # scores, what they weigh, the logits
    backward = [1] * 7 * c.n_layer + [2] * 2 * c.n_layer + [1]  # a frozen map has one input, a product of two has both
    rows, inner, columns = torch.tensor(shapes, dtype=torch.float64).unbind(1)
    return 2 * torch.einsum("m,m,m,m->", rows, inner, columns, 1 + torch.tensor(backward, dtype=torch.float64))


def peak_bytes(c, P, T, n):
    wide, narrow = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    terms = torch.tensor([
        [4 * 2 * c.n_layer, P, narrow],  # the prefix, its gradient, two moments
        [2 * c.n_layer, P + T, narrow],  # keys and values side by side, old and new
        [2 * c.n_layer, T, c.n_embd],
        [2 * c.n_layer, T, wide],
        [3 * c.n_layer, T, c.n_ffn],
        [c.n_layer, T, c.n_head],
        [1, T, P + T],  # the mask
    ], dtype=torch.float64)
    passing = torch.tensor([[n, c.vocab_size], [T, c.n_ffn]], dtype=torch.float64).prod(1).max()
    return float(4 * (terms.prod(1).sum() + 3 * passing))


def fit(k, seconds):
    if len(k) != len(seconds) or len(set(k)) < 2 or any(x <= 0 for x in (*k, *seconds)):
        raise ValueError(f"{len(k)} k and {len(seconds)} seconds do not give a and b.")
    powers = torch.tensor(k, dtype=torch.float64)[:, None] ** torch.tensor([1, 2])
    Q, R = torch.linalg.qr(powers / torch.tensor(seconds, dtype=torch.float64)[:, None])
    return torch.linalg.solve_triangular(R, Q.sum(0)[:, None], upper=True).flatten().tolist()
