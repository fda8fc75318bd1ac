"""Exported contexts: what peft and transformers load computes what nanoct computes, and comes back as the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from helpers import config_of, message, random_task, saved_nano
from helpers.llama import ids, read, write
from safetensors.torch import load_file, save_file

from nanoct.fewshot import Adapted, encode_context
from nanoct.io.weights import load, load_model
from nanoct.methods import KNOWN
from nanoct.runs import export as exporting
from nanoct.runs.contexts import ENTRY, load_adapted, save_adapted
from nanoct.runs.export import CONFIG, WEIGHTS, dynamic_cache, export, from_cache, restore
from nanoct.template import answer, task_of

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


def test_transformers_generates_with_the_lines_of_the_docstring(base, tmp_path, monkeypatch):
    folder, model = base
    adapted, tokens = adapt("ct_kv", model), ids(1, 7, vocab_size=23)
    monkeypatch.chdir(tmp_path)
    save_adapted(adapted, "ctx.safetensors", "ct_kv", {}, 4)
    lines = [line.strip() for line in exporting.__doc__.splitlines() if line.startswith("    ")]
    first = next(i for i, line in enumerate(lines) if line.startswith("theta = "))
    shown = dict(load_file=load_file, DynamicCache=transformers.DynamicCache, torch=torch, tokens=tokens,
                 model=read(folder))
    shown["model"].generation_config.max_new_tokens = 9
    exec("\n".join(lines[first : first + 3]), shown)
    said = eval(lines[first + 3], shown)[0].tolist()
    expected = tokens[0].tolist()
    for _ in range(9):
        expected.append(ours(adapted, torch.tensor([expected]))[0, -1].argmax().item())
    assert said == expected[: len(said)] and len(said) > 7
    close(read(folder)(tokens, past_key_values=dynamic_cache(adapted.prefix)).logits, ours(adapted, tokens))


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


def test_an_adapter_of_peft_in_bfloat16_is_read_as_float32(base, tmp_path):
    folder, model = base
    theirs = peft.get_peft_model(read(folder), peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    theirs.save_pretrained(tmp_path)
    held = {name: torch.randn(t.shape).bfloat16() for name, t in load_file(tmp_path / WEIGHTS).items()}
    save_file(held, tmp_path / WEIGHTS)
    adapted, tokens = restore(tmp_path, model)[0], ids(1, 7)
    assert_moved(adapted, tokens)
    close(ours(adapted, tokens), peft.PeftModel.from_pretrained(read(folder), tmp_path)(tokens).logits)


@pytest.mark.slow
def test_the_command_writes_without_peft_and_brings_back_the_same_file(tmp_path, monkeypatch, capsys):
    """In a process where neither library can be imported."""
    folder = saved_nano(tmp_path / "model")
    (tmp_path / "mine.jsonl").write_text('{"input": "ab", "output": "ba"}\n{"input": "abc", "output": "cba"}\n')
    monkeypatch.chdir(tmp_path)
    commands = [
        ["tune", "--data", "mine.jsonl", "--model", folder, "--method", "ttt_ct_kv", "--out", "ctx", "--set",
         "n_step=1", "ttt_n_step=1", "rank=2", "--device", "cpu"],
        ["export", "--context", "ctx", "--out", "out"],
        ["export", "--back", "out", "--model", folder, "--out", "again"],
        ["export", "--context", "ctx", "--out", "out"],
        ["export", "--back", "out", "--out", "new"],
        ["export", "--back", "out", "--model", folder, "--out", "new", "--cartridge"],
    ]
    tuned, wrote, brought, *refused = without_libraries(commands)
    assert tuned[0] == 0, tuned
    assert wrote == [0, "".join(f'wrote out/{name}: PeftModel.from_pretrained(model, "out/{name}")\n'
                                for name in ("adapter", "prefix")), ""]
    assert sorted(file.name for file in Path("out").glob("*/*")) == [CONFIG] * 2 + [WEIGHTS] * 2
    assert brought[0] == 0 and Path("again").read_bytes() == Path("ctx").read_bytes()
    assert peft.PeftConfig.from_pretrained("out/prefix").base_model_name_or_path == str(folder)
    for (code, _, error), said in zip(refused, ("--out out exists", "give the model that it belongs to with --model",
                                               "--cartridge is a form to export")):
        assert code == 2 and said in error and error.count("\n") == 1

    save_file({"prompt_embeddings": load_file("out/prefix/" + WEIGHTS)["prompt_embeddings"]}, "out/prefix/" + WEIGHTS)
    ((code, *_),) = without_libraries([["export", "--back", "out/prefix", "--model", folder, "--out", "bare"]])
    adapted, about = load_adapted("bare", *load(folder, "cpu"))
    assert code == 0 and about["method"] == "prefix_tuning" and set(adapted.prefix.owner.tolist()) == {-1}


def without_libraries(commands):
    """[exit code, stdout, stderr] of each command, all in one process that can import neither peft nor transformers."""
    program = """if True:
        import contextlib, io, json, runpy, sys
        sys.modules.update(peft=None, transformers=None)
        told = []
        for words in json.loads(sys.argv[1]):
            sys.argv, code, streams = ["nanoct", *words], 0, (io.StringIO(), io.StringIO())
            with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
                try:
                    runpy.run_module("nanoct", run_name="__main__")
                except SystemExit as stop:
                    code = stop.code or 0
            told.append([code, *(stream.getvalue() for stream in streams)])
        print(json.dumps(told))"""
    words = json.dumps([[*map(str, each)] for each in commands])
    done = subprocess.run([sys.executable, "-c", program, words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_smollm2_exported_says_the_same_in_transformers(tmp_path):
    """Twelve pairs of words; transformers decodes greedily behind the cache."""
    if not (SMOLLM2 / "model.safetensors").is_file():
        pytest.skip("no weights/smollm2: `make smollm2` brings it")
    model, tokenizer = load(SMOLLM2, "cpu")
    pairs = [("hot", "cold"), ("big", "small"), ("up", "down"), ("fast", "slow"), ("good", "bad"), ("young", "old"),
             ("happy", "sad"), ("rich", "poor"), ("hard", "soft"), ("light", "dark"), ("early", "late"),
             ("open", "closed")]
    adapted = KNOWN["ct_kv"].adapt(model, task_of(pairs, tokenizer), config_of(KNOWN["ct_kv"], n_step=2, lr=3e-3))
    export(adapted, tmp_path, base=SMOLLM2)
    again, _ = restore(tmp_path, model)
    theirs, P = read(SMOLLM2, "sdpa"), len(adapted.prefix.owner)
    for question in ("tall", "a long story"):
        tokens = torch.tensor([tokenizer.encode(question + "\n")])
        said = theirs.generate(tokens, past_key_values=dynamic_cache(again.prefix), max_new_tokens=8, do_sample=False,
                               attention_mask=torch.ones(1, P + tokens.shape[1]))
        text = tokenizer.decode(said[0, tokens.shape[1] :].tolist())
        assert text.split("\n\n")[0].strip() == answer(adapted, question, tokenizer)


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


def test_biases_that_only_peft_multiplies_are_refused_both_ways(tmp_path):
    write(tmp_path / "base", family="Qwen2")
    model = load_model(tmp_path / "base", "cpu")
    with pytest.raises(ValueError, match="without its bias, and peft's with it"):
        export(adapt("ia3", model), tmp_path / "out")
    targets = dict(target_modules=["k_proj"], feedforward_modules=[])
    peft.get_peft_model(read(tmp_path / "base"), peft.IA3Config(**targets)).save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="without its bias, and peft's with it"):
        restore(tmp_path / "theirs", model)


def test_parts_of_several_ranks_and_nothing_at_all_are_refused(base, tmp_path):
    adapted = adapt("lora", base[1])
    for part in list(adapted.adapter.values())[:1]:
        part.scale *= 2
    for wrong, said in [(adapted, "2 ranks or scales"), (Adapted(base[1]), "nothing to export")]:
        with pytest.raises(ValueError, match=said):
            export(wrong, tmp_path)
    assert not list(tmp_path.iterdir())


def settings(**changes):
    def damage(folder):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | changes))
    return damage


def tensors(change, header=None):
    def damage(folder):
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS, {ENTRY: json.dumps(header)} if header else None)
    return damage


LAYER = "base_model.model.model.layers.0.self_attn.q_proj."
VALUES = LAYER.replace("q_proj", "v_proj") + "ia3_l"


@pytest.mark.parametrize("name, damage, said", [
    ("lora", settings(rank_pattern={"q_proj": 2}), "it has rank_pattern = {'q_proj': 2}"),
    ("lora", settings(peft_type="LOHA"), "it is of the type LOHA, and known are PREFIX_TUNING, CARTRIDGE, LORA, IA3"),
    ("lora", settings(peft_type=None), "is not a folder of peft"),
    ("lora", tensors(lambda held: held.update({LAYER + "lora_C.weight": torch.ones(3)})), "for which the model has no"),
    ("lora", tensors(lambda held: held.pop(LAYER + "lora_A.weight")), "do not fit layers.0.self_attn.q_proj"),
    ("lora", tensors(lambda held: held.update({LAYER + "lora_A.weight": torch.ones(3, 9)})), "do not fit layers.0."),
    ("lora", lambda folder: (folder / WEIGHTS).unlink(), "there is no file"),
    ("lora", tensors(lambda held: None, dict(model="another")), "tuned on the model another and this one is"),
    ("ct_kv", settings(prefix_projection=True), "it has prefix_projection = True"),
    ("ct_kv", tensors(lambda held: held.update(prompt_embeddings=torch.ones(3, 9))), "have (9,) numbers and the model"),
    ("ct_kv", tensors(lambda held: None, dict(owner=[1, 2])), "entries and the owners [1, 2]"),
    ("ct_kv", tensors(lambda held: None, dict(owner=[2**70] * 26)), "entries and the owners [118"),
    ("ct_kv", tensors(lambda held: None, dict(config="")), "config is ''"),
    ("lora", settings(init_lora_weights="pissa_niter_4"), "it has init_lora_weights = 'pissa_niter_4'"),
    ("lora", settings(r=8), "do not fit layers.0."),
    ("ia3", tensors(lambda held: held.update({VALUES: torch.ones(0)})), "do not fit layers.0.self_attn.v_proj"),
])
def test_folders_that_nanoct_cannot_compute(base, tmp_path, name, damage, said):
    place, *_ = export(adapt(name, base[1], instruction=0), tmp_path)
    damage(place)
    with pytest.raises((ValueError, OSError)) as error:
        restore(tmp_path, base[1])
    assert said in message(error)


@pytest.mark.parametrize("start", ["pissa", "orthogonal"])
def test_a_start_that_changes_the_model_is_refused_and_another_is_not(base, tmp_path, start):
    folder, model = base
    theirs = peft.get_peft_model(read(folder), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=start))
    theirs.save_pretrained(tmp_path)
    weight = theirs.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    if torch.equal(weight, model.model.layers[0].self_attn.q_proj.weight):
        close(ours(restore(tmp_path, model)[0], ids(1, 7)), theirs(ids(1, 7)).logits)
    else:
        with pytest.raises(ValueError, match="it has init_lora_weights"):
            restore(tmp_path, model)


def test_no_folder(tmp_path, base):
    with pytest.raises(FileNotFoundError, match="there is no adapter_config.json in"):
        restore(tmp_path, base[1])
