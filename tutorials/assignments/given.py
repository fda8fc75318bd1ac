"""A small model to try A3 and A4 on: random weights, milliseconds a call. It is no Llama and answers nothing of A1.

    logits, keys, values = model(tokens, positions, mask, keys, values)

Positions are vectors added to the embeddings, every head has keys of its own, and nothing is turned. What you write for
it needs no more of a model than that call.

Dimensions: B batch, T new tokens, P prefix, L layers, K heads, D width of a head, V vocabulary.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Model(nn.Module):
    """A frozen decoder. dtype is what it computes in.

    stretch: every weight is stored divided by this and used multiplied by it, so with a power of 2 the model computes
    the same numbers whatever the stretch is. Only the gradients of its weights differ.
    """

    def __init__(self, seed=0, dtype=torch.float64, vocab=23, width=7, L=2, K=3, D=5, n_position=97, stretch=1.0):
        super().__init__()
        self.vocab, self.L, self.K, self.D, self.stretch = vocab, L, K, D, stretch
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape, scale: nn.Parameter(
            (scale * torch.randn(shape, generator=generator, dtype=torch.float64) / stretch).to(dtype))
        self.token, self.place = draw(vocab, width, scale=1), draw(n_position, width, scale=1)
        self.q, self.k, self.v = (draw(L, K * D, width, scale=width**-0.5) for _ in "qkv")
        self.o = draw(L, width, K * D, scale=(K * D) ** -0.5)
        self.up, self.down = draw(L, 2 * width, width, scale=width**-0.5), draw(L, width, 2 * width, scale=width**-0.5)
        self.head = draw(vocab, width, scale=2)

    dtype = property(lambda self: self.token.dtype)

    def forward(self, tokens, positions, mask=None, keys=None, values=None):
        """Reads T new tokens behind P entries, or behind none.

        tokens (B, T) ids, positions (B or 1, T); keys, values (L, B or 1, K, P, D) of any float dtype
        mask (B or 1, T, P+T) bool, True where a token may look; default: all of the prefix, and causal among the new
        Returns logits (B, T, V), and the keys and values (L, B, K, T, D) of the new tokens.
        """
        P = 0 if keys is None else keys.shape[3]
        B, T = tokens.shape
        if mask is None:
            mask = torch.ones(1, T, P + T, dtype=torch.bool).tril(P)
        if mask.dtype != torch.bool or mask.shape not in ((B, T, P + T), (1, T, P + T)):
            raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}, expected bool ({B} or 1, {T}, {P + T}).")
        if positions.shape not in ((B, T), (1, T)):
            raise ValueError(f"positions are {tuple(positions.shape)}, expected ({B} or 1, {T}).")
        used = lambda weight: weight * self.stretch
        x, new_keys, new_values = used(self.token)[tokens] + used(self.place)[positions], [], []
        for l in range(self.L):
            heads = lambda weight: (norm(x) @ used(weight[l]).T).view(B, T, self.K, self.D).transpose(1, 2)
            k, v = heads(self.k), heads(self.v)
            new_keys.append(k), new_values.append(v)
            if keys is not None:  # be they none: what is cut out of a prefix stays in the graph
                behind = lambda past, new: torch.cat([past[l].to(new.dtype).expand(B, -1, -1, -1), new], dim=2)
                k, v = behind(keys, k), behind(values, v)
            y = F.scaled_dot_product_attention(heads(self.q), k, v, attn_mask=mask[:, None])
            x = x + y.transpose(1, 2).reshape(B, T, -1) @ used(self.o[l]).T
            x = x + torch.tanh(norm(x) @ used(self.up[l]).T) @ used(self.down[l]).T
        return norm(x) @ used(self.head).T, torch.stack(new_keys), torch.stack(new_values)


def norm(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
