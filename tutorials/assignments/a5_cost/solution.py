"""Assignment 5, solved."""


def flops_step(c, P, T, n):
    L, H, K, D, C, F, V = c.n_layer, c.n_head, c.n_kv_head, c.head_dim, c.n_embd, c.n_ffn, c.vocab_size
    S = P + T
    N = L * (2 * H * D * C + 2 * K * D * C + 3 * C * F)
    linear = 4 * N * T  # forward, and the gradient of the inputs; none of the weights
    scores = 12 * L * H * D * T * S  # two products forward, four backward
    head = 4 * V * C * n
    return linear + scores + head


def peak_bytes(c, P, T, n):
    L, H, K, D, C, F, V = c.n_layer, c.n_head, c.n_kv_head, c.head_dim, c.n_embd, c.n_ffn, c.vocab_size
    S, entry = P + T, 2 * L * K * D
    trained = 4 * entry * P  # value, gradient, two moments
    saved = L * T * (2 * C + 2 * H * D + 3 * F + H) + entry * S + T * S  # until the backward pass is through
    passing = max(3 * V * n, T * (3 * F + C))  # logits, their log-softmax, its gradient; or a block at work
    return 4 * (trained + saved + passing)


def fit(k, seconds):
    if len(set(k)) < 2 or len(k) != len(seconds) or min(*k, *seconds) <= 0:
        raise ValueError("two different k at least, and seconds for each, all positive.")
    rows = [(x / y, x * x / y) for x, y in zip(k, seconds)]  # a·x/y + b·x²/y is near 1
    uu, uv, vv = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    u, v = (sum(r[i] for r in rows) for i in (0, 1))
    determinant = uu * vv - uv * uv
    return (u * vv - v * uv) / determinant, (v * uu - u * uv) / determinant
