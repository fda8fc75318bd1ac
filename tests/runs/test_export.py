"""Exported contexts: what peft and transformers load computes what nanoct computes, and comes back as the same bits."""

from pathlib import Path

import peft
import pytest
import torch
import transformers
from helpers import config_of, message, random_task
from helpers.llama import ids, read, write
from safetensors.torch import load_file

from nanoct.fewshot import Adapted, encode_context
from nanoct.io.weights import load_model
from nanoct.methods import KNOWN
from nanoct.runs.contexts import load_adapted, save_adapted
from nanoct.runs.export import dynamic_cache, export, from_cache, restore

SMOLLM2 = Path(__file__).parents[2] / "weights" / "smollm2"  # where `make smollm2` puts it; its test skips without
PREFIXES = "icl", "prompt_tuning", "prefix_tuning", "ct_kv", "ct_prompt", "cpt", "deep_thinking", "prune", "anchors"
ADAPTERS = "lora", "dora", "ttt", "ttt_ct_kv", "ia3"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(folder, our reading of it): a random Llama whose KV heads are two for four query heads."""
    folder = tmp_path_factory.mktemp("base")
    write(folder)
    return folder, load_model(folder, "cpu")


def adapt(name, model, instruction=2, **changes):
    changes = dict(n_step=2, ttt_n_step=2, lr=0.3, rank=3, n_prefix=5, dropout=0.0) | changes
    return KNOWN[name].adapt(model, random_task(instruction=instruction), config_of(KNOWN[name], **changes))


def ours(adapted, tokens):
    return adapted.model.logits(adapted.model(tokens, prefix=adapted.prefix, adapter=adapted.adapter)[0])


def assert_moved(adapted, tokens):
    """An untrained adapter or an ignored prefix would pass the comparisons below, too."""
    plain = ours(Adapted(adapted.model), tokens)
    assert (ours(adapted, tokens) - plain).abs().max() > 0.1
    if adapted.adapter:
        assert (ours(Adapted(adapted.model, prefix=adapted.prefix), tokens) - ours(adapted, tokens)).abs().max() > 1e-2


def close(theirs, expected):
    torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=0)


# --- out: peft and transformers compute the same ---


@pytest.mark.parametrize("name", PREFIXES)
def test_peft_computes_the_same_behind_a_prefix(base, tmp_path, name):
    folder, model = base
    adapted, tokens = adapt(name, model), ids(2, 7, vocab_size=23)
    assert_moved(adapted, tokens)
    assert export(adapted, tmp_path, base=folder) == [tmp_path / "prefix"]
    theirs = peft.PeftModel.from_pretrained(read(folder), tmp_path / "prefix")
    close(theirs(tokens).logits[:, -7:], ours(adapted, tokens))


def test_peft_reads_a_cartridge(base, tmp_path):
    folder, model = base
    adapted, tokens = adapt("ct_kv", model), ids(2, 7, vocab_size=23)
    export(adapted, tmp_path, kind="CARTRIDGE")
    theirs = peft.PeftModel.from_pretrained(read(folder), tmp_path / "prefix")
    assert type(theirs.peft_config["default"]) is peft.CartridgeConfig
    close(theirs(tokens).logits[:, -7:], ours(adapted, tokens))


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_computes_the_same_with_an_adapter(base, tmp_path, name):
    """Where there is a prefix too: with the cache given, and with the adapter merged and the prefix loaded."""
    folder, model = base
    instruction = 0 if name in ("lora", "dora") else 2
    adapted, tokens = adapt(name, model, instruction), ids(2, 7, vocab_size=23)
    assert_moved(adapted, tokens)
    places = export(adapted, tmp_path, base=folder)
    theirs = peft.PeftModel.from_pretrained(read(folder), places[0])
    if not instruction:
        assert places == [tmp_path / "adapter"]
        close(theirs(tokens).logits, ours(adapted, tokens))
        return
    for row in tokens[:, None]:
        close(theirs(row, past_key_values=dynamic_cache(adapted.prefix)).logits, ours(adapted, row))
    both = peft.PeftModel.from_pretrained(theirs.merge_and_unload(), tmp_path / "prefix")
    close(both(tokens).logits[:, -7:], ours(adapted, tokens))


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "SmolLM3", "Olmo2"])
def test_the_relatives_of_llama_too(tmp_path, family):
    write(tmp_path / "base", family=family)
    model, tokens = load_model(tmp_path / "base", "cpu"), ids(1, 7, vocab_size=23)
    for name in "ttt_ct_kv", "dora":
        adapted = adapt(name, model)
        export(adapted, tmp_path / name)
        theirs = peft.PeftModel.from_pretrained(read(tmp_path / "base"), tmp_path / name / "adapter")
        close(theirs(tokens, past_key_values=dynamic_cache(adapted.prefix)).logits, ours(adapted, tokens))


@pytest.mark.parametrize("name", ["ct_kv", "lora", "dora"])
def test_gpt2_whose_files_are_transposed(tmp_path, name):
    torch.manual_seed(0)
    small = dict(vocab_size=61, n_positions=160, n_embd=32, n_layer=2, n_head=4)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**small)).save_pretrained(tmp_path / "base")
    model, tokens = load_model(tmp_path / "base", "cpu"), ids(1, 7, vocab_size=23)
    adapted = adapt(name, model, instruction=0)
    (place,) = export(adapted, tmp_path)
    theirs = peft.PeftModel.from_pretrained(read(tmp_path / "base"), place)
    close(theirs(tokens).logits[:, -7:], ours(adapted, tokens))
    if name != "ct_kv":
        close(theirs.merge_and_unload()(tokens).logits, ours(adapted, tokens))
    again, _ = restore(tmp_path, model)
    assert torch.equal(ours(again, tokens), ours(adapted, tokens))


def test_the_file_of_a_context_is_a_cache_in_two_lines(base, tmp_path):
    """The two lines are those of the module's docstring."""
    folder, model = base
    adapted, tokens = adapt("ct_kv", model), ids(1, 7, vocab_size=23)
    save_adapted(adapted, tmp_path / "ctx.safetensors", "ct_kv", {}, 4)
    theta = load_file(tmp_path / "ctx.safetensors")
    cache = transformers.DynamicCache([*zip(theta["prefix.keys"], theta["prefix.values"])])
    close(read(folder)(tokens, past_key_values=cache).logits, ours(adapted, tokens))


def test_a_cache_comes_back(base):
    folder, model = base
    tokens = ids(1, 9, seed=1)
    cache = read(folder)(tokens, use_cache=True).past_key_values
    theta, expected = from_cache(cache), encode_context(model, tokens[0].tolist())
    assert theta.next_position == 9 and torch.equal(theta.owner, expected.owner)
    for mine, own in zip(theta.stack(), expected.stack()):
        close(mine, own)


# --- and back ---


@pytest.mark.parametrize("name", [*PREFIXES, *ADAPTERS])
def test_a_folder_comes_back_as_the_same_file(base, tmp_path, name):
    folder, model = base
    adapted = adapt(name, model, alpha=0.1)
    config = config_of(KNOWN[name], n_step=2)
    save_adapted(adapted, tmp_path / "a", name, config, 4, template="{input}:{output};", name=str(folder))
    loaded, about = load_adapted(tmp_path / "a", model)
    export(loaded, tmp_path / "out", about, kind="CARTRIDGE" if name == "icl" else "PREFIX_TUNING")
    again, about = restore(tmp_path / "out", model)
    save_adapted(again, tmp_path / "b", name, config, 4, template=about["template"], name=about["name"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_folders_that_peft_wrote(base, tmp_path):
    folder, model = base
    tokens = ids(1, 7)
    kinds = dict(
        prefix=peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        cartridge=peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        lora=peft.LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "down_proj"]),
        dora=peft.LoraConfig(r=4, use_dora=True, target_modules=["k_proj"]),
        ia3=peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]))
    for name, config in kinds.items():
        torch.manual_seed(0)
        theirs = peft.get_peft_model(read(folder), config)
        trained = [p for p in theirs.parameters() if p.requires_grad]
        with torch.no_grad():
            for p in trained:
                p += torch.randn(p.shape) / 2
        theirs.save_pretrained(tmp_path / name)
        adapted, about = restore(tmp_path / name, model)
        assert adapted.n_trained == sum(p.numel() for p in trained) + (64 if name == "cartridge" else 0)
        assert about["k"] == 0 and about["method"] in ("prefix_tuning", "cartridge", "lora", "ia3")
        assert_moved(adapted, tokens)
        close(ours(adapted, tokens), theirs(tokens).logits[:, -7:])
        if adapted.prefix is not None:
            assert adapted.prefix.owner.tolist() == [-1] * 4


# --- what cannot be expressed ---


@pytest.mark.parametrize("name, changes, said", [
    ("lara", dict(size=2), "the answers are mixed from 2 contexts, and peft has one"),
    ("windows", dict(size=2, structured=True), "count more or less than once"),
    ("windows", dict(size=2), "the context has 28 entries and a question begins at position 17"),
    ("anchors", dict(compress=True), "the context has 16 entries and a question begins at position 28"),
    ("qttt", {}, "made of Queries, which peft does not have: only LoRA, DoRA and (IA)³"),
    ("i2cl", {}, "made of Injection, which peft does not have"),
])
def test_what_peft_lacks_is_refused_in_a_sentence_and_nothing_is_written(base, tmp_path, name, changes, said):
    adapted = adapt(name, base[1], **changes)
    with pytest.raises(ValueError) as error:
        export(adapted, tmp_path / "out")
    assert said in message(error) and not (tmp_path / "out").exists()
    if not adapted.adapter:
        with pytest.raises(ValueError, match="peft"):
            dynamic_cache(adapted.prefix)
