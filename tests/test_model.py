"""The hand-written Llama against transformers' on random weights, and the promises of its KV cache."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_llama
from helpers.llama import LAYOUTS, assert_logits, ids, read, write
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nanoct.io.weights import load_model, save_model
from nanoct.model import Llama, LlamaConfig, RMSNorm, alike, has_fused_groups, rope_frequencies

FAMILIES = {  # name -> the family in transformers, and settings beside BASE
    "Llama with biases": ("Llama", dict(attention_bias=True)),
    "Llama as base": ("Llama", {}),
    "Qwen2": ("Qwen2", dict(head_dim=8, sliding_window=16, use_sliding_window=False)),
    "Qwen2.5": ("Qwen2", dict(tie_word_embeddings=False, rope_theta=1e6, max_window_layers=1)),
    "Qwen2, window behind its layers": ("Qwen2", dict(use_sliding_window=True, sliding_window=16, max_window_layers=2)),
    "Qwen3": ("Qwen3", dict(head_dim=12)),
    "Qwen3 with biases": ("Qwen3", dict(head_dim=6, attention_bias=True, tie_word_embeddings=False)),
    "Mistral": ("Mistral", dict(sliding_window=None, tie_word_embeddings=False)),
    "Mistral, window of its context": ("Mistral", dict(sliding_window=512, head_dim=12)),
    "OLMo-2": ("Olmo2", dict(tie_word_embeddings=False)),
    "OLMo-2 with biases": ("Olmo2", dict(attention_bias=True)),
    "SmolLM3": ("SmolLM3", dict(num_hidden_layers=5)),
    "SmolLM3, every second": ("SmolLM3", dict(num_hidden_layers=5, no_rope_layer_interval=2)),
    "SmolLM3, a list": ("SmolLM3", dict(no_rope_layers=[0, 1])),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(ours, theirs): one model in both libraries, with heads of another width and llama3 scaling."""
    folder = tmp_path_factory.mktemp("pair")
    theirs = write(folder, **LAYOUTS["llama3"])
    return load_model(folder, device="cpu"), theirs


def prefix_of(model, tokens, kv=None):
    return SimpleNamespace(kv=kv or model(tokens)[1], next_position=tokens.shape[1])


# --- equal to transformers ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_equal_transformers(tmp_path, layout):
    theirs = write(tmp_path, **LAYOUTS[layout])
    assert_logits(load_model(tmp_path, device="cpu"), theirs, ids(2, 160))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_equal_transformers(tmp_path, name):
    """The same bits in a plain forward; close behind a cache, with padding in the mask, and after a round trip."""
    family, layout = FAMILIES[name]
    write(tmp_path / "theirs", family=family, **layout)
    theirs, ours = read(tmp_path / "theirs", "sdpa"), load_model(tmp_path / "theirs", device="cpu")
    tokens = ids(2, 40)
    expected = theirs(tokens).logits
    assert expected.std() > 1 and torch.equal(ours.logits(ours(tokens)[0]), expected)

    hidden, kv = ours(tokens[:, :25])
    prefix = SimpleNamespace(kv=kv, next_position=25)
    close = lambda logits, theirs: (logits - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert close(ours.logits(ours(tokens[:, 25:], prefix=prefix)[0]), expected[:, 25:])
    shown = torch.ones(2, 40, dtype=torch.bool)
    shown[1, :7] = False  # their padding on the left, our mask
    mask = torch.ones(40, 40, dtype=torch.bool).tril() & shown[:, None] | torch.eye(40, dtype=torch.bool)
    positions = torch.stack([torch.arange(40), (torch.arange(40) - 7).clamp(min=0)])
    masked = theirs(tokens, attention_mask=shown.long(), position_ids=positions).logits
    assert close(ours.logits(ours(tokens, mask=mask, positions=positions)[0])[shown], masked[shown])

    again = read(save_model(ours, tmp_path / "again"), "sdpa")
    assert torch.equal(again(tokens).logits, expected)
    assert load_model(tmp_path / "again", device="cpu").config == ours.config


@pytest.mark.parametrize("dtype, max_shard_size", [(torch.float32, "20KB"), (torch.bfloat16, "1GB"),
                                                   (torch.bfloat16, "20KB")])
def test_logits_of_shards_and_bf16_files_equal_transformers(tmp_path, dtype, max_shard_size):
    theirs = write(tmp_path, dtype=dtype, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
    assert_logits(load_model(tmp_path, device="cpu"), theirs, ids(2, 40))


def test_llama3_scaling_has_all_three_bands(pair):
    ours, theirs = pair
    scaled = rope_frequencies(ours.config)
    plain = rope_frequencies(LlamaConfig(**vars(ours.config) | dict(rope_scaling=None)))
    ratio = plain / scaled
    assert ratio[0] == 1 and ratio[-1] == 8 and ((ratio > 1.01) & (ratio < 7.99)).sum() >= 2
    torch.testing.assert_close(scaled, theirs.model.rotary_emb.inv_freq, atol=0, rtol=1e-6)


def test_rms_norm_in_bf16_is_computed_in_float32():
    x = 8 * torch.randn(5, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours, theirs = RMSNorm(48, 1e-5).bfloat16(), LlamaRMSNorm(48, 1e-5).bfloat16()
    assert torch.equal(ours(x), theirs(x))


def test_mask_and_positions_equal_transformers(pair):
    ours, theirs = pair
    tokens = ids(3, 20)
    g = torch.Generator().manual_seed(1)
    positions = torch.randint(300, (3, 20), generator=g)
    mask = torch.rand(3, 20, 20, generator=g) < 0.4  # arbitrary: also looks ahead
    mask |= torch.eye(20, dtype=torch.bool)
    bias = torch.zeros(3, 1, 20, 20).masked_fill(~mask[:, None], torch.finfo(torch.float32).min)
    expected = theirs(tokens, attention_mask=bias, position_ids=positions).logits
    hidden, _ = ours(tokens, positions=positions, mask=mask)
    torch.testing.assert_close(ours.logits(hidden), expected, atol=1e-4, rtol=0)
    one = theirs(tokens, attention_mask=bias[:1].expand(3, -1, -1, -1), position_ids=positions[:1].expand(3, -1)).logits
    hidden, _ = ours(tokens, positions=positions[:1], mask=mask[:1])
    torch.testing.assert_close(ours.logits(hidden), one, atol=1e-4, rtol=0)


def test_mask_over_a_prefix_equals_transformers(pair):
    ours, theirs = pair
    tokens, P, T = ids(2, 24), 10, 14
    g = torch.Generator().manual_seed(2)
    mask = torch.rand(2, T, P + T, generator=g) < 0.5
    mask[:, :, P:] |= torch.eye(T, dtype=torch.bool)
    positions = torch.randint(200, (2, T), generator=g)
    hidden, _ = ours(tokens[:, P:], prefix=prefix_of(ours, tokens[:, :P]), mask=mask, positions=positions)
    whole = torch.cat([torch.ones(P, P + T, dtype=torch.bool).tril().expand(2, -1, -1), mask], dim=1)
    bias = torch.zeros(2, 1, P + T, P + T).masked_fill(~whole[:, None], torch.finfo(torch.float32).min)
    positions = torch.cat([torch.arange(P).expand(2, -1), positions], dim=1)
    expected = theirs(tokens, attention_mask=bias, position_ids=positions).logits[:, P:]
    torch.testing.assert_close(ours.logits(hidden), expected, atol=1e-4, rtol=0)


def test_kv_equals_past_key_values(pair):
    ours, theirs = pair
    tokens = ids(2, 90)
    kv = ours(tokens)[1]
    cache = theirs(tokens, use_cache=True).past_key_values
    assert len(kv) == len(cache.layers) == 2
    for (k, v), layer in zip(kv, cache.layers):
        torch.testing.assert_close(k, layer.keys, atol=1e-5, rtol=0)
        torch.testing.assert_close(v, layer.values, atol=1e-5, rtol=0)


# --- the KV cache ---


@pytest.mark.parametrize("split", [1, 7, 29])
def test_prefix_then_rest_is_one_forward(pair, split):
    ours, _ = pair
    tokens = ids(2, 30)
    whole, whole_kv = ours(tokens)
    rest, rest_kv = ours(tokens[:, split:], prefix=prefix_of(ours, tokens[:, :split]))
    torch.testing.assert_close(rest, whole[:, split:], atol=1e-5, rtol=0)
    for (k, v), (whole_k, whole_v) in zip(rest_kv, whole_kv):
        torch.testing.assert_close(k, whole_k[:, :, split:], atol=1e-5, rtol=0)
        torch.testing.assert_close(v, whole_v[:, :, split:], atol=1e-5, rtol=0)


def test_a_prefix_of_one_row_serves_all_rows(pair):
    ours, _ = pair
    tokens, prefix = ids(3, 8, seed=1), prefix_of(ours, ids(1, 5))
    rows = SimpleNamespace(kv=[(k.repeat(3, 1, 1, 1), v.repeat(3, 1, 1, 1)) for k, v in prefix.kv], next_position=5)
    torch.testing.assert_close(ours(tokens, prefix=prefix)[0], ours(tokens, prefix=rows)[0], atol=1e-6, rtol=0)


def test_each_row_sees_its_own_prefix(pair):
    ours, _ = pair
    tokens, demos = ids(3, 8, seed=1), ids(3, 5)
    together = ours(tokens, prefix=prefix_of(ours, demos))[0]
    for b in range(3):
        alone = ours(tokens[b:b + 1], prefix=prefix_of(ours, demos[b:b + 1]))[0]
        torch.testing.assert_close(together[b:b + 1], alone, atol=1e-5, rtol=0)


def test_next_position_places_the_new_tokens(pair):
    ours, _ = pair
    tokens, prefix = ids(1, 6), prefix_of(ours, ids(1, 5, seed=1))
    prefix.next_position = 40
    default = ours(tokens, prefix=prefix)[0]
    told = ours(tokens, prefix=prefix, positions=torch.arange(40, 46)[None])[0]
    near = ours(tokens, prefix=prefix, positions=torch.arange(5, 11)[None])[0]
    assert torch.equal(default, told) and not torch.allclose(default, near, atol=1e-2)


def test_gradients_of_a_prefix_are_finite_differences():
    config = LlamaConfig(vocab_size=11, n_layer=2, n_head=4, n_kv_head=2, n_embd=8, head_dim=4, n_ffn=12, n_position=32)
    model = Llama(config).double().requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.uniform_(0.5, 1.5, generator=g) if p.dim() == 1 else p.normal_(std=0.5, generator=g)
    leaves = [torch.randn(1, 2, 3, 4, generator=g, dtype=torch.double).requires_grad_() for _ in range(4)]

    def hidden(*leaves):
        prefix = SimpleNamespace(kv=[leaves[:2], leaves[2:]], next_position=3)
        return model(ids(2, 3, vocab_size=11), prefix=prefix)[0]

    assert torch.autograd.gradcheck(hidden, leaves)
    assert all(p.grad is None for p in model.parameters())


def test_a_float32_prefix_is_tuned_behind_a_bf16_model(pair):
    model = Llama(pair[0].config).requires_grad_(False)
    model.load_state_dict(pair[0].state_dict())
    model.bfloat16()
    prefix = prefix_of(model, ids(1, 5))
    assert prefix.kv[0][0].dtype == torch.bfloat16
    expected = model(ids(2, 6), prefix=prefix)[0]
    prefix.kv = [tuple(t.float().requires_grad_() for t in layer) for layer in prefix.kv]
    hidden, kv = model(ids(2, 6), prefix=prefix)
    assert torch.equal(hidden, expected) and kv[0][0].dtype == torch.bfloat16
    assert model.logits(hidden).dtype == torch.float32
    model.logits(hidden).logsumexp(-1).sum().backward()
    for k, v in prefix.kv:
        assert k.grad.dtype == v.grad.dtype == torch.float32 and k.grad.abs().sum() > 0 and v.grad.abs().sum() > 0


# --- embeds and adapters ---


def test_embeds_equal_tokens(pair):
    ours, _ = pair
    assert torch.equal(ours(embeds=ours.embed(ids(2, 9)))[0], ours(ids(2, 9))[0])


def test_an_identity_adapter_changes_nothing_and_each_linear_is_called_once(pair):
    ours, _ = pair
    calls = []

    def identity(name):
        def apply(x, weight):
            calls.append(name)
            return F.linear(x, weight)
        return apply

    hidden, kv = ours(ids(2, 9), adapter={name: identity(name) for name in ours.linears})
    expected, expected_kv = ours(ids(2, 9))
    assert sorted(calls) == sorted(ours.linears) and len(calls) == 2 * 7
    assert set(ours.linears) == {f"layers.{i}.{part}" for i in range(2) for part in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}
    assert torch.equal(hidden, expected)
    assert all(torch.equal(a, b) for new, old in zip(kv, expected_kv) for a, b in zip(new, old))


@pytest.mark.parametrize("part", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                  "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])
def test_an_adapter_acts_as_the_weight_it_computes(tmp_path, part):
    write(tmp_path)
    ours = load_model(tmp_path, device="cpu")
    delta = 0.1 * torch.randn(ours.linears[f"layers.1.{part}"].weight.shape, generator=torch.Generator().manual_seed(0))
    adapted = ours(ids(2, 9), adapter={f"layers.1.{part}": lambda x, w: F.linear(x, w) + F.linear(x, delta)})[0]
    plain = ours(ids(2, 9))[0]
    ours.linears[f"layers.1.{part}"].weight.add_(delta)
    torch.testing.assert_close(adapted, ours(ids(2, 9))[0], atol=1e-4, rtol=0)
    assert not torch.allclose(adapted, plain, atol=1e-2)


# --- what does not fit ---


def zeros(*shape, n_layer=2):
    return SimpleNamespace(kv=[(torch.zeros(shape), torch.zeros(shape))] * n_layer, next_position=shape[2])


def everything(*shape):
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize("arguments, said", [
    (dict(), "either tokens or embeds"),
    (dict(tokens=ids(1, 4), embeds=torch.zeros(1, 4, 32)), "not both"),
    (dict(embeds=torch.zeros(1, 4, 31)), "31"),
    (dict(tokens=ids(1, 4), mask=everything(1, 4, 5)), "(1, 4, 5)"),
    (dict(tokens=ids(1, 4), mask=everything(4, 4)), "(4, 4)"),
    (dict(tokens=ids(1, 4), mask=torch.zeros(1, 4, 4)), "float32"),
    (dict(tokens=ids(1, 4), prefix=zeros(1, 2, 3, 16, n_layer=1)), "1 layers"),
    (dict(tokens=ids(1, 4), prefix=zeros(1, 4, 3, 16)), "(1, 4, 3, 16)"),
    (dict(tokens=ids(1, 4), prefix=zeros(1, 2, 3, 8)), "(1, 2, 3, 8)"),
    (dict(tokens=ids(1, 4), adapter={"layers.0.mlp.q_proj": F.linear}), "'layers.0.mlp.q_proj'"),
])
def test_what_does_not_fit_is_refused(pair, arguments, said):
    with pytest.raises(ValueError) as error:
        pair[0](**arguments)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("change, said", [(dict(n_kv_head=3), "n_kv_head = 3"), (dict(head_dim=5), "head_dim = 5"),
                                          (dict(norm_eps=0.0), "norm_eps = 0"), (dict(norm_eps=1.0), "norm_eps = 1")])
def test_an_impossible_config_is_refused(pair, change, said):
    with pytest.raises(ValueError, match=said):
        LlamaConfig(**vars(pair[0].config) | change)


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_repeated_kv_heads_are_what_grouped_attention_reads(monkeypatch, n_kv_head):
    """What masked calls do on CUDA, forced here: the same hidden states and gradients, and no grouped kernel."""
    model, tokens = tiny_llama(n_kv_head=n_kv_head), torch.arange(10)[None]
    mask = torch.rand(1, 10, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = (mask | torch.eye(10, dtype=torch.bool)).tril()
    sdpa, calls, results = F.scaled_dot_product_attention, [], []

    def expanded(q, k, v, **options):
        k, v = alike(k, q.shape[1]), alike(v, q.shape[1])
        calls.append((k.shape, options["enable_gqa"]))
        return sdpa(q, k, v, **options | dict(enable_gqa=False))

    for kernel in (sdpa, expanded):
        monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
        embeds = model.embed(tokens).requires_grad_()
        hidden, _ = model(embeds=embeds, mask=mask)
        results.append((hidden, *torch.autograd.grad(hidden.square().sum(), embeds)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    assert calls and all(shape[1] == 4 for shape, _ in calls)


@pytest.mark.parametrize("dtype, capability, expected", [
    (torch.bfloat16, (9, 0), True), (torch.float16, (10, 0), True), (torch.bfloat16, (8, 9), False),
    (torch.float32, (9, 0), False)])
def test_kv_heads_are_repeated_where_no_kernel_takes_groups_and_a_mask(monkeypatch, dtype, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fused_groups(torch.zeros(1, dtype=dtype)) is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_masked_call_needs_the_kernel_that_stores_all_scores(dtype):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model, tokens = tiny_llama(dtype=dtype, head_dim=16).cuda(), torch.arange(10, device="cuda")[None]
    mask = torch.ones(1, 10, 10, dtype=torch.bool, device="cuda").tril()
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        embeds = model.embed(tokens).requires_grad_()
        model(embeds=embeds, mask=mask)[0].float().square().sum().backward()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_norm_of_a_gpu_is_the_norm(dtype, tolerance):
    norm, generator = RMSNorm(24, eps=0.3).to(dtype), torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 24, generator=generator).to(dtype)
    norm.weight.data.copy_(torch.linspace(-1, 2, 24))
    torch.testing.assert_close(norm.fused(x), norm.plain(x), rtol=tolerance, atol=tolerance)


def test_frequencies_are_computed_once(monkeypatch):
    """A copy to a GPU in every forward pass would wait for it, and cannot be recorded."""
    calls, model, tokens = [], tiny_llama(), torch.arange(6)[None]
    counted = lambda config: calls.append(config) or rope_frequencies(config)
    monkeypatch.setattr("nanoct.model.rope_frequencies", counted)
    first, second = (model(tokens)[0] for _ in range(2))
    assert len(calls) == 1 and torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_a_small_dtype_are_float32_products(monkeypatch, dtype):
    """To float32's precision, in parts of the vocabulary; the gradient too, for which no copy of the head is kept."""
    monkeypatch.setattr("nanoct.model.HEAD", 5)  # of 23
    model = tiny_llama(dtype=dtype)
    hidden = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    exact = hidden.double() @ model.embedding.weight.double().T
    ours = model.logits(hidden)
    assert ours.dtype == torch.float32 and ((ours - exact).abs() <= 1e-6 * exact.abs().max()).all()
    weights = torch.arange(4 * 23).view(4, 23)
    found, = torch.autograd.grad((ours * weights).sum(), hidden)
    wanted, = torch.autograd.grad((exact * weights).sum(), hidden)
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
