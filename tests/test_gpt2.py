"""GPT-2 in the frame of the Llama: equal to transformers, and every method runs on it. Recomputed activations."""

import json

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import V, config_of, leaves, padded_loss, pairs_of, random_task, relative_error, same_bits, tiny_llama
from safetensors.torch import load_file, save_file

from nanoct.adapters import DoRA, LoRA, attach
from nanoct.adapters import leaves as leaves_of
from nanoct.fewshot import Adapted, encode_context
from nanoct.gpt2 import GPT2, GPT2Config
from nanoct.io.weights import fingerprint, load_model, read_config, save_model
from nanoct.methods import METHODS
from nanoct.packing import answer_logits, pack, visible
from nanoct.score import evaluate, generate

SHORT = dict(n_step=3, ttt_n_step=2)


def write(folder, tied=True, max_shard_size="1GB", **changes):
    """A random checkpoint as transformers writes it, and the model."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=V, n_embd=16, n_layer=2, n_head=4, n_positions=64, tie_word_embeddings=tied,
                 bos_token_id=0, eos_token_id=0) | changes
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(0.3, 1.2) if p.dim() == 1 else p.normal_(std=0.4)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    theirs = write(folder)
    return load_model(folder, device="cpu"), theirs


def ids(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def assert_logits(ours, theirs, tokens):
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert expected.std() > 1
    torch.testing.assert_close(ours.logits(ours(tokens)[0]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [{}, dict(tied=False), dict(n_inner=24), dict(max_shard_size="5KB"),
                                     dict(layer_norm_epsilon=0.1)], ids=str)
def test_logits_equal_transformers(tmp_path, changes):
    theirs = write(tmp_path, **changes)
    assert_logits(load_model(tmp_path, device="cpu"), theirs, ids(2, 64))


def test_greedy_ids_equal_transformers(pair):
    ours, theirs = pair
    expected = theirs.generate(ids(1, 5), max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generate(Adapted(ours), ids(1, 5).tolist(), 30) == expected[:, 5:].tolist()


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_prefix_then_rest_is_one_forward(pair, cut):
    ours, _ = pair
    tokens = ids(1, 20)
    prefix = encode_context(ours, tokens[0, :cut].tolist())
    torch.testing.assert_close(ours(tokens[:, cut:], prefix=prefix)[0], ours(tokens)[0][:, cut:], atol=1e-5, rtol=1e-4)


def test_cache_equals_past_key_values(pair):
    ours, theirs = pair
    with torch.no_grad():
        past = theirs(ids(2, 9)).past_key_values
    for layer, (k, v) in zip(past.layers, ours(ids(2, 9))[1], strict=True):
        torch.testing.assert_close(k, layer.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(v, layer.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("style", ["first public files", "buffers", "a head that is the embedding"])
def test_files_as_they_are_about(tmp_path, style):
    theirs = write(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    if style == "first public files":
        state = {name.removeprefix("transformer."): t for name, t in state.items()}
    elif style == "buffers":
        names = [f"transformer.h.{i}.attn.{name}" for i in range(2) for name in ("bias", "masked_bias")]
        state |= {name: torch.ones(1, 1, 64, 64) for name in names}
    else:
        state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    save_file(state, file)
    assert_logits(load_model(tmp_path, device="cpu"), theirs, ids(2, 20))


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_what_is_written(tmp_path, tied):
    model = GPT2(GPT2Config(V, 2, 4, 16, 24, 64, 1e-3, tied))
    model.init_weights(torch.Generator().manual_seed(0)).requires_grad_(False)
    save_model(model, tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(ids(2, 30))[0]), theirs(ids(2, 30)).logits, atol=1e-4, rtol=0)
    assert fingerprint(load_model(tmp_path, "cpu")) == fingerprint(model)
    assert read_config(tmp_path) == model.config


def test_positions_end_where_the_table_does(pair):
    ours, _ = pair
    with pytest.raises(ValueError, match="position 64 .* the 64 .* fewer or shorter"):
        ours(ids(1, 65))
    with pytest.raises(ValueError, match="position 70 "):
        ours(ids(1, 2), positions=torch.tensor([[3, 70]]))


@pytest.mark.parametrize("key, value", [
    ("activation_function", "relu"), ("scale_attn_weights", False), ("n_head", 3),
    ("scale_attn_by_inverse_layer_idx", True), ("add_cross_attention", True), ("n_positions", None),
])
def test_a_config_that_is_not_computed_is_refused(tmp_path, key, value):
    write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=f"config.json .*{key}.*\\.$"):
        load_model(tmp_path, "cpu")


@pytest.mark.parametrize("dora", [False, True])
def test_lora_and_dora_equal_peft(tmp_path, dora):
    """Loss and gradients; peft's adapter of the same numbers on the same linears, biases left alone."""
    base = write(tmp_path)
    ours = load_model(tmp_path, "cpu")
    config = peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.0, use_dora=dora, fan_in_fan_out=True,
                             target_modules=["c_attn", "c_proj", "c_fc"])
    theirs = peft.get_peft_model(base, config)
    adapter = attach(DoRA if dora else LoRA, ours, 3, 5, generator=torch.Generator().manual_seed(0))
    named = [p for p in theirs.parameters() if p.requires_grad]
    mine = leaves_of(adapter)
    for i, leaf in enumerate(mine):
        if leaf.dim() == 2 and not leaf.any():
            leaf.data.normal_(std=0.3, generator=torch.Generator().manual_seed(i))
    for p, leaf in zip(named, mine, strict=True):
        p.data.copy_(leaf.data)
    tokens = ids(2, 15)
    loss = F.cross_entropy(ours.logits(ours(tokens, adapter=adapter)[0])[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    expected = theirs(tokens, labels=tokens).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(loss, mine), torch.autograd.grad(expected, named), strict=True):
        assert relative_error(a, b) < 1e-4


def test_packed_loss_and_gradients_equal_the_padded(pair):
    ours, _ = pair
    task = random_task()
    context = encode_context(ours, task.instruction, task.demos)
    seen = visible(context.owner, 4, True, 0.3, torch.Generator().manual_seed(0))
    row = pack(pairs_of(task), ours, context.next_position)
    losses = []
    for loss in (lambda p: F.cross_entropy(answer_logits(ours, row, p, mask=row.mask(seen)), row.target),
                 lambda p: padded_loss(ours, p, pairs_of(task), seen)):
        trained, prefix = leaves(context)
        losses.append((now := loss(prefix), torch.autograd.grad(now, trained)))
    assert losses[0][0].item() == pytest.approx(losses[1][0].item(), rel=1e-5)
    for a, b in zip(losses[0][1], losses[1][1]):
        assert relative_error(a, b) < 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_leaves_the_weights(pair, name):
    ours, _ = pair
    before = {n: p.clone() for n, p in ours.named_parameters()}
    task, losses = random_task(options=2, metric="accuracy"), []
    config = config_of(METHODS[name], **SHORT, n_prefix=4)
    adapted = METHODS[name].adapt(ours, task, config, progress=lambda step, loss: losses.append(loss))
    assert 0 <= evaluate(adapted, task).score <= 1 and all(loss > 0 for loss in losses)
    assert all(torch.equal(p, before[n]) for n, p in ours.named_parameters())


# --- activations computed again in the backward pass ---


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if hasattr(method.Config, "n_step")])
def test_checkpointing_changes_no_bit(pair, name, family):
    """Also with dropout in the adapter, whose masks must be the same both times."""
    model = pair[0] if family == "gpt2" else tiny_llama()
    config, results = config_of(METHODS[name], **SHORT, n_prefix=4, dropout=0.4, lr=0.05, ttt_lr=0.05), []
    for model.checkpoint in (False, True):
        losses = []
        adapted = METHODS[name].adapt(model, random_task(), config, progress=lambda step, loss: losses.append(loss))
        results.append((adapted, losses))
    model.checkpoint = False
    assert results[0][1] == results[1][1]
    assert same_bits(results[0][0], results[1][0])


def test_checkpointing_keeps_less_for_the_backward_pass():
    model, task, kept = tiny_llama(n_layer=6), random_task(), []
    for model.checkpoint in (False, True):
        size = {}
        pack_hook = lambda t: (t, size.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()))[0]
        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda t: t):
            METHODS["lora"].adapt(model, task, config_of(METHODS["lora"], n_step=1))
        kept.append(sum(size.values()))
    assert kept[1] < kept[0] / 2
