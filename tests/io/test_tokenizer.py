"""The tokenizer against its references: Meta's published vectors and the `tokenizers` library."""
import base64
import json
import os
import random
import re
import subprocess
import sys
import time
import unicodedata
from copy import deepcopy
from functools import cache
from itertools import chain, product
from types import SimpleNamespace

import pytest
import regex
from helpers import DATA
from helpers.bpe import LLAMA3, SPACES, TEXTS, WORDS, train
from hypothesis import event, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Reference

from nanoct.benchmarks import common, nano
from nanoct.io import tokenizer
from nanoct.io.tokenizer import LLAMA3_SPECIAL, load_tokenizer

LLAMA3_FOLDER = DATA / "llama3_tokenizer"
QWEN_FOLDER = DATA.parents[1] / "models" / "qwen2.5-coder-1.5b"  # `nanoct gguf` makes it of the public file
needs_qwen = pytest.mark.skipif(not QWEN_FOLDER.is_dir(), reason=f"no Qwen2.5 in {QWEN_FOLDER}")
needs_llama3 = pytest.mark.skipif(not LLAMA3_FOLDER.is_dir(), reason=f"no Llama-3 tokenizer in {LLAMA3_FOLDER}")

fragments = st.sampled_from(WORDS + SPACES + ["<|ab|>", "'", "s", "7"])
repeatable = settings(deadline=None, derandomize=True, database=None)
texts = st.lists(fragments | st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=3)).map("".join)


def write(folder, file, **more):
    """A folder with `file` as its tokenizer.json, and each of `more` as NAME.json."""
    folder.mkdir(exist_ok=True)
    for name, data in {"tokenizer": file, **more}.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def layout_of(reference):
    return json.loads(reference.to_str())


def check(ours, reference, text):
    """Ids of `text` with special tokens as text and as themselves, and the way back, equal the reference's."""
    for special in (False, True):
        reference.encode_special_tokens = not special
        ids = ours.encode(text, special=special)
        assert ids == reference.encode(text, add_special_tokens=False).ids, (text, special)
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """layout -> (the reference, ours loaded from the file it writes)."""
    pairs = {}
    for layout in ("llama3", "qwen", "tekken", "smollm2", "gpt2", "prefix_space"):
        reference = train(layout)
        pairs[layout] = reference, load_tokenizer(write(tmp_path_factory.mktemp(layout), layout_of(reference)))
    return pairs


# ---- Llama-3's tokenizer.model

@pytest.fixture(scope="module")
def llama3():
    return load_tokenizer(LLAMA3_FOLDER)


@needs_llama3
def test_llama3_gives_the_published_vectors(llama3):
    for vector in json.loads((LLAMA3_FOLDER / "vectors.json").read_text(encoding="utf-8")):
        assert llama3.encode(vector["text"]) == vector["ids"]
        assert llama3.decode(vector["ids"]) == vector["text"]


@needs_llama3
def test_llama3_special_tokens(llama3):
    names = {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|finetune_right_pad_id|>": 128004,
             "<|start_header_id|>": 128006, "<|eom_id|>": 128008, "<|eot_id|>": 128009, "<|python_tag|>": 128010}
    assert names.items() <= llama3.special.items()
    assert sorted(llama3.special.values()) == list(range(128000, 128256))
    assert (llama3.vocab_size, llama3.bos_id, llama3.eos_id) == (128256, 128000, 128001)
    assert llama3.encode("hi<|eot_id|>", bos=True, special=True) == [128000, 6151, 128009]


@needs_llama3
@repeatable
@given(text=texts)
def test_llama3_decodes_what_it_encodes(llama3, text):
    ids = llama3.encode(text)
    assert max(ids, default=0) < 128000  # no special token, whatever the text
    assert llama3.decode(ids) == text


def write_ranks(folder, reference):
    """The reference's ordinary tokens as a tokenizer.model."""
    direct = {ord(c) for c in pre_tokenizers.ByteLevel.alphabet() if ord(c) < 256}
    indirect = [byte for byte in range(256) if byte not in direct]
    vocab = sorted(reference.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    spelled = [bytes(ord(c) if ord(c) < 256 else indirect[ord(c) - 256] for c in token) for token, _ in vocab]
    folder.joinpath("tokenizer.model").write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), i)
                                                            for i, token in enumerate(spelled)))
    return folder


def test_ranks_and_json_of_one_vocabulary_agree(trained, tmp_path):
    reference, from_json = trained["llama3"]
    ranks = load_tokenizer(write_ranks(tmp_path, reference))
    n = reference.get_vocab_size(with_added_tokens=False)
    assert ranks.vocab_size == n + 256 and ranks.special == {name: n + i for i, name in enumerate(LLAMA3_SPECIAL)}
    for text in TEXTS:
        assert ranks.encode(text) == from_json.encode(text)


@pytest.mark.parametrize("line", [b"YQ= 3", b"Yg== x", b"Yg==", b"!!!! 3", b"enp6eg== 7", b"IQ== 3"])
def test_a_broken_line_of_ranks_is_refused(trained, tmp_path, line):
    path = write_ranks(tmp_path, trained["llama3"][0]) / "tokenizer.model"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:3], line, *lines[4:]]))
    refused(tmp_path, "tokenizer.model is not Llama-3's lines of base64 and rank")


def test_a_sentencepiece_model_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x08\n\x03\xe2\x96\x81")
    refused(tmp_path, "tokenizer.model", "SentencePiece", "Llama-3")


# ---- tokenizer.json against the library that writes it

LAYOUTS = pytest.mark.parametrize("layout", ["llama3", "qwen", "tekken", "smollm2", "gpt2", "prefix_space"])


@LAYOUTS
def test_json_equals_the_reference(trained, layout):
    reference, ours = trained[layout]
    assert ours.vocab_size == reference.get_vocab_size()
    for text in TEXTS:
        check(ours, reference, text)


@LAYOUTS
@repeatable
@given(text=texts)
def test_json_equals_the_reference_on_any_text(trained, layout, text):
    reference, ours = trained[layout]
    check(ours, reference, text)


def test_ids_differ_from_ranks_in_the_smollm2_layout(trained):
    """What makes the comparison above bite: special tokens come first, so no ordinary id is its rank."""
    _, ours = trained["smollm2"]
    assert sorted(ours.special.values()) == [0, 1, 2, 3] and min(ours.encode("\x00!")) >= 4


@pytest.mark.parametrize("layout", ["llama3", "smollm2"])
def test_a_token_that_no_merge_makes(trained, tmp_path, layout):
    """Found as a whole piece with ignore_merges, never without."""
    file = layout_of(trained[layout][0])
    file["model"]["vocab"]["qqqq"] = new = 5000
    reference, ours = Reference.from_str(json.dumps(file)), load_tokenizer(write(tmp_path, file))
    for text in ["qqqq", " qqqq", "qqqqq", "qqqq 1"]:
        check(ours, reference, text)
    assert (ours.encode("qqqq") == [new]) == (layout == "llama3")
    assert ours.decode([new]) == "qqqq" and ours.vocab_size == new + 1


def hand_made(seed):
    """A tokenizer.json of four letters with random merges, of which no training need make a token, in random order."""
    draw = random.Random(seed)
    tokens, merges = list("abcd"), []
    for _ in range(draw.randint(1, 14)):
        left, right = draw.choice(tokens), draw.choice(tokens)
        if len(left + right) <= 6:
            merges.append([left, right])
            tokens += [left + right] * (left + right not in tokens)
    draw.shuffle(merges)
    tokens += ["dab"] * (seed % 3 == 0 and "dab" not in tokens)
    return dict(pre_tokenizer={**PROCESSED, "add_prefix_space": False}, added_tokens=[],
                model=dict(type="BPE", vocab={token: i for i, token in enumerate(draw.sample(tokens, len(tokens)))},
                           merges=merges, ignore_merges=seed % 2 == 0))


def test_merges_that_were_never_trained_give_the_ids_of_the_reference(tmp_path):
    """tiktoken merges by rank, so a wrong rank, or one of a token that no merge completes, would give other ids."""
    n_refused = 0
    for seed in range(150):
        file, draw = hand_made(seed), random.Random(seed)
        reference = Reference.from_str(json.dumps(file))
        try:
            ours = load_tokenizer(write(tmp_path, file))
        except ValueError as error:
            assert seed % 2 == 0 and "a whole piece alone and two tokens in a longer one" in str(error)
            n_refused += 1
            continue
        for _ in range(100):
            text = "".join(draw.choices("abcd", k=draw.randint(1, 14)))
            assert ours.encode(text) == reference.encode(text).ids, (seed, text)
    assert 0 < n_refused < 50


def test_a_merge_of_what_is_no_token_is_refused(trained, tmp_path):
    file = layout_of(trained["gpt2"][0])
    file["model"]["vocab"]["qqqr"] = 5000
    file["model"]["merges"].append(["qqq", "r"])
    refused(write(tmp_path, file), "its merge ['qqq', 'r'] makes no token of its vocabulary of two others")


@pytest.mark.parametrize("folder", [nano.FOLDER / "strings", "bytes"])
def test_the_fingerprint_is_the_same_in_every_process(folder):
    """Sets of strings have another order in each; a context that one process saved is read by another."""
    code = f"from nanoct.io.tokenizer import load_tokenizer; print(load_tokenizer({str(folder)!r}).fingerprint)"
    run = lambda seed: subprocess.check_output([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed})
    assert run("1") == run("2") == f"{load_tokenizer(folder).fingerprint}\n".encode()


def test_the_fingerprint_changes_with_ids_merges_special_tokens_and_pattern_and_with_nothing_else(trained, tmp_path):
    file = layout_of(trained["llama3"][0])
    mark = lambda file, **more: load_tokenizer(write(tmp_path, file, **more)).fingerprint
    first = mark(file)
    assert re.fullmatch("[0-9a-f]{12}", first) and mark(file) == first == trained["llama3"][1].fingerprint
    assert mark(file, tokenizer_config={"add_bos_token": False}) == first
    (tmp_path / "tokenizer_config.json").unlink()

    def swap(file):
        vocab = file["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    def split(file):
        step = file["pre_tokenizer"]["pretokenizers"][0]
        step["pattern"]["Regex"] = step["pattern"]["Regex"].replace("{1,3}", "")

    def late(file):
        merges = file["model"]["merges"]
        merges[-2:] = merges[:-3:-1]

    n = trained["llama3"][1].vocab_size
    changes = [swap, split, late,
               lambda file: file["added_tokens"][0].update(special=False),
               lambda file: file["added_tokens"].append({**file["added_tokens"][0], "id": n, "content": "<new>"}),
               lambda file: file.update(normalizer={"type": "NFC"})]
    marks = {first}
    for change in changes:
        other = deepcopy(file)
        change(other)
        marks.add(mark(other))
    assert len(marks) == 1 + len(changes)


def test_a_special_token_of_the_vocabulary_is_no_word(trained, tmp_path):
    file = layout_of(trained["llama3"][0])
    file["model"]["vocab"]["qqqq"] = new = 5000
    file["added_tokens"].append({**file["added_tokens"][0], "id": new, "content": "qqqq"})
    ours = load_tokenizer(write(tmp_path, file))
    assert new not in ours.encode("qqqq qqqq") and ours.encode("qqqq", special=True) == [new]


def test_an_old_file_that_relies_on_defaults(trained, tmp_path):
    file = layout_of(trained["gpt2"][0])
    del file["model"]["type"], file["pre_tokenizer"]["use_regex"]
    old, reference = load_tokenizer(write(tmp_path, file)), Reference.from_str(json.dumps(file))
    for text in TEXTS:
        check(old, reference, text)


def test_merges_as_strings_or_pairs(trained, tmp_path):
    reference, ours = trained["smollm2"]
    file = layout_of(reference)
    assert isinstance(file["model"]["merges"][0], list)
    file["model"]["merges"] = [" ".join(pair) for pair in file["model"]["merges"]]
    strings = load_tokenizer(write(tmp_path, file))
    assert all(strings.encode(text) == ours.encode(text) for text in TEXTS)


def test_added_tokens_that_are_not_special_are_always_found(trained, tmp_path):
    reference = Reference.from_str(trained["smollm2"][0].to_str())
    reference.add_tokens([AddedToken("then we", normalized=False), AddedToken("then", normalized=False)])
    ours = load_tokenizer(write(tmp_path, layout_of(reference)))
    assert len(ours.encode("then we")) == 1 and "then we" not in ours.special
    for text in ["then we", "and then we can<s>", " then", "the then"]:
        ours_ids = ours.encode(text, special=True)
        reference.encode_special_tokens = False
        assert ours_ids == reference.encode(text).ids
        assert ours.decode(ours_ids) == text


def test_a_byte_without_a_token_is_named(tmp_path):
    file = layout_of(train("smollm2", initial_alphabet=[]))
    ours = load_tokenizer(write(tmp_path, file))
    assert ours.decode(ours.encode("the zebra")) == "the zebra"
    with pytest.raises(ValueError, match="no token for 'Ж', character 10 of 'the zebra Ж'") as error:
        ours.encode("the zebra Ж")
    one_line(error)
    with pytest.raises(ValueError, match="no token for 'Ж', character 4 of 'xЖ'"):
        ours.encode("<s>xЖ", special=True)


def test_special_tokens_come_from_text_only_if_asked(trained):
    for layout, (_, ours) in trained.items():
        for name, i in ours.special.items():
            assert i not in ours.encode(f"a{name} {name}"), layout
            assert ours.encode(f"a{name}b", special=True).count(i) == 1
            assert ours.decode([i]) == name


@pytest.mark.parametrize("config, bos, eos", [
    (None, "<s>", "<|endoftext|>"),
    ({"bos_token": "<|a|>", "eos_token": {"content": "<|ab|>", "lstrip": False}}, "<|a|>", "<|ab|>"),
    ({"bos_token": None}, None, "<|endoftext|>")])
def test_bos_and_eos(trained, tmp_path, config, bos, eos):
    more = {"tokenizer_config": config} if config else {}
    ours = load_tokenizer(write(tmp_path, layout_of(trained["gpt2"][0]), **more))
    assert (ours.bos_id, ours.eos_id) == (ours.special.get(bos), ours.special.get(eos))
    if bos:
        assert ours.encode("a", bos=True) == [ours.bos_id, *ours.encode("a")]
    else:
        with pytest.raises(ValueError, match="no beginning-of-sequence token") as error:
            ours.encode("a", bos=True)
        one_line(error)


def test_invalid_utf8_is_replaced_and_unknown_ids_are_refused(trained):
    for _, ours in trained.values():
        euro = ours.encode("€")
        assert len(euro) >= 2 and ours.decode(euro[-1:]) == "\ufffd"
        for i in (-1, ours.vocab_size):
            with pytest.raises(ValueError, match=f"no token has id {i}: .* ids 0 to {ours.vocab_size - 1}") as error:
                ours.decode([*euro, i])
            one_line(error)


# ---- NFC, other regexes, and tokens that are no special ones

@needs_qwen
@settings(repeatable, max_examples=100)
@given(text=texts)
def test_the_real_qwen_equals_the_reference(text):
    check(*real_qwen(), text)


@cache
def real_qwen():
    return load_tokenizer(QWEN_FOLDER), Reference.from_file(str(QWEN_FOLDER / "tokenizer.json"))


def test_nfc_is_that_of_the_reference_for_every_mark_and_composition(trained):
    """Python's is of a later Unicode."""
    ours, nfc = trained["qwen"][1], normalizers.NFC()
    known = regex.compile(r"\P{ccc=0}|\p{dt=canonical}")  # of a Unicode that is newer still
    changed = 0
    for character in filter(known.match, map(chr, chain(range(0xD800), range(0xE000, 0x110000)))):
        parts = unicodedata.normalize("NFD", character)
        for text in (f"a{character}\u0334", f"a\u0345{character}", f"a\u0301{character}\u0323\u0301", parts):
            assert ours._normal(text) == nfc.normalize_str(text), ascii(text)
            changed += ours._normal(text) != text
    assert changed > 10000
    parts = "\U00011935\U00011930"  # which Unicode 13 joins
    assert ours._normal(parts) == nfc.normalize_str(parts)


characters = st.sampled_from([*r"\p{L} \p{N} \p{Lu} \p{Ll} \p{M} \p{P} \s \S \r \n ' s t 7 a-z ! / _".split(), " "])
one_of = characters.filter(lambda c: "-" not in c) | st.builds(
    lambda no, them: f"[{no}{''.join(them)}]", st.sampled_from(["", "^"]), st.lists(characters, min_size=1, max_size=3))
times = st.sampled_from(["", "", "?", "*", "+", "{2}", "{1,3}", "{2,}"])
repeated = st.builds(str.__add__, one_of | st.just("(?i:'s|'t|'re|'ve|'m|'ll|'d)"), times)
parts_of_regex = repeated | repeated | one_of.map("(?!{})".format) | st.just("|")
flat = st.lists(parts_of_regex, min_size=1, max_size=5).map("".join)
regexes = st.lists(flat | st.builds("(?:{}){}".format, flat, times), min_size=1, max_size=4).map("".join)


@settings(repeatable, max_examples=100)
@given(split=regexes, text=texts)
def test_regexes_of_the_known_parts_cut_as_the_reference(trained, tmp_path_factory, split, text):
    file = layout_of(trained["llama3"][0])
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = split
    folder = write(tmp_path_factory.mktemp("split"), file)
    if regex.match(split, ""):
        return refused(folder, "pre-tokenizer")
    try:
        reference = Reference.from_str(json.dumps(file))
    except Exception as error:  # no file has such a regex
        assert "target of repeat operator" in str(error)
        return
    try:
        ours = load_tokenizer(folder)
        for one in [text, *TEXTS[::80], *(one for one in TEXTS[-30:] if len(one) < 200)]:
            check(ours, reference, one)
    except ValueError as error:  # tiktoken stops at (?:(?!a))?, and where it must go back too often
        assert "tokenizer.json cannot be used" in str(error) or "cannot be cut into pieces" in str(error)
        event("refused")


@pytest.mark.parametrize("split", [
    r"\w+", r"\b", "a$", "^a", "a++", "a{1,3}+", "a*?", "(?i:ss)", "(?i)a", "(a)", "a*", "a|", "(?:a?)*",
    r"(?!\S)", "(?=a)", "(?<=a)b", "[a&&b]", "[[a]]", "[z-a]", "a{3,1}", "a{2}{2}", "(?:a", "a)", ".", r"\x41",
    r"\p{Greek}", "", "(?:(?:a))", "(?!(?:a))", "[]", "ß"])
def test_a_regex_of_other_parts_is_refused(trained, tmp_path, split):
    file = layout_of(trained["llama3"][0])
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = split
    refused(write(tmp_path, file), "tokenizer.json", "pre-tokenizer")


def test_a_regex_that_tiktoken_cannot_read_is_refused(trained, tmp_path):
    file = layout_of(trained["llama3"][0])
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "a(?:(?!b))?"
    refused(write(tmp_path, file), "tokenizer.json cannot be used", "repeat operator")


def test_added_tokens_before_and_behind_nfc(trained, tmp_path):
    """Those of "normalized": false are cut out of the text, the others of the normal form of what is left."""
    reference = Reference.from_str(trained["qwen"][0].to_str())
    reference.add_tokens([AddedToken("|ab|", normalized=False), AddedToken("we the", normalized=True),
                          AddedToken("the e\u0301", normalized=False), AddedToken("qe\u0301", normalized=True)])
    ours = load_tokenizer(write(tmp_path, layout_of(reference)))
    for text in ["we the e\u0301", "we the \u00e9", "qe\u0301", "q\u00e9 we the", "x<|ab|>|ab|", "e<s>\u0301",
                 "qe<s>\u0301", "qwe the"]:
        for special in (False, True):
            reference.encode_special_tokens = not special
            assert ours.encode(text, special=special) == reference.encode(text).ids, (text, special)
    i = ours.plain["|ab|"]
    assert i not in ours.encode("<|ab|>") and ours.encode("|ab|") == [i]  # a special token hides what stands in it


@pytest.mark.parametrize("text, found", [
    ("e\u0301 Ж", "'Ж', character 3 of 'e\u0301 Ж'"), ("xe\u0327", "'\u0229', character 1 of"),
    ("<s>o\u0308 e\u0301Ж", "'Ж', character 8 of"), ("the zebra\u1ac5\u0323", "'\u1ac5', character 9 of")])
def test_a_character_without_a_token_is_named_in_the_users_text(tmp_path, text, found):
    normalizer = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    file = layout_of(train("smollm2", initial_alphabet=[])) | {"normalizer": normalizer}
    ours = load_tokenizer(write(tmp_path, file))
    with pytest.raises(ValueError, match=f"no token for {found}"):
        ours.encode(text, special=True)


def test_a_bos_or_eos_that_is_an_ordinary_or_a_plain_token(trained, tmp_path):
    file = with_processor(trained["llama3"][0], TEMPLATE, "<s>")
    for token in file["added_tokens"]:
        token["special"] = token["content"] != "<s>"
    eos = min((i, token) for token, i in file["model"]["vocab"].items() if token.isalpha() and len(token) > 2)
    ours = load_tokenizer(write(tmp_path, file, tokenizer_config={"eos_token": eos[1]}))
    assert (ours.bos_id, ours.eos_id, ours.adds_bos) == (ours.plain["<s>"], eos[0], True)
    assert eos[0] in ours.special.values()  # and so it ends an answer
    assert ours.encode("a", bos=True) == ids_of(Reference.from_str(json.dumps(file)), "a")


def test_a_special_token_that_is_a_byte_of_the_alphabet(trained, tmp_path):
    reference = Reference.from_str(trained["gpt2"][0].to_str())
    reference.add_special_tokens(["!"])
    ours = load_tokenizer(write(tmp_path, layout_of(reference)))
    reference.encode_special_tokens = True
    assert ours.encode("hi!") == reference.encode("hi!", add_special_tokens=False).ids


def test_ids_that_pad_the_models_vocabulary_are_no_text(trained, tmp_path):
    ours = load_tokenizer(write(tmp_path, layout_of(Reference.from_str(trained["gpt2"][0].to_str()))))
    n = ours.vocab_size
    pytest.raises(ValueError, ours.decode, [n])
    ours.check_belongs(n + 2)
    assert ours.decode([*ours.encode("a"), n, n + 1]) == "a\ufffd\ufffd"
    pytest.raises(ValueError, ours.decode, [n + 2])


def test_special_tokens_beyond_the_model(trained, tmp_path):
    """A [PAD] that was added to the tokenizer alone is fine as long as it stays out of the text."""
    reference = Reference.from_str(trained["gpt2"][0].to_str())
    size = reference.get_vocab_size()
    reference.add_special_tokens(["[PAD]"])
    file = layout_of(reference)
    ours = load_tokenizer(write(tmp_path, file))
    assert ours.encode("[PAD]", special=True) == [size]
    ours.check_belongs(size)
    assert max(ours.encode("a[PAD]")) < size and ours.encode("<s>[PA", special=True)
    with pytest.raises(ValueError, match=rf"has the id {size} for '\[PAD\]', and the model has {size} tokens") as error:
        ours.encode("a[PAD]", special=True)
    one_line(error)
    with pytest.raises(ValueError, match="do not belong together"):
        ours.check_belongs(size - 1)  # <|endoftext|>, the eos
    ends = load_tokenizer(write(tmp_path, file, tokenizer_config={"eos_token": "[PAD]"}))
    file["added_tokens"][-1]["special"] = False
    for wrong in (ends, load_tokenizer(write(tmp_path / "plain", file))):
        with pytest.raises(ValueError, match="do not belong together"):
            wrong.check_belongs(size)


# ---- a token of the beginning: has one, and puts one

def ids_of(reference, text):
    return reference.encode(text, add_special_tokens=True).ids


TEMPLATE = {"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [-1], "tokens": ["<s>"]}}}
PROCESSED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def with_processor(reference, processor, token="<s>"):
    """The layout of a reference with a post-processor, whose <s> is another token."""
    text = json.dumps(processor).replace("[-1]", f"[{reference.token_to_id(token)}]").replace("<s>", token)
    return layout_of(reference) | {"post_processor": json.loads(text)}


@pytest.mark.parametrize("layout", ["llama3", "smollm2"])
@pytest.mark.parametrize("processor, token", [
    (None, None), (PROCESSED, None), (TEMPLATE, "<s>"), (TEMPLATE, "<|a|>"),
    ({"type": "Sequence", "processors": [PROCESSED, TEMPLATE]}, "<s>"),
    ({"type": "Sequence", "processors": [PROCESSED]}, None), ({**TEMPLATE, "single": TEMPLATE["single"][1:]}, None)])
def test_a_bos_is_put_where_the_post_processor_puts_one(trained, tmp_path, layout, processor, token):
    file = with_processor(trained[layout][0], processor, token or "<s>")
    ours, reference = load_tokenizer(write(tmp_path, file)), Reference.from_str(json.dumps(file))
    assert ours.adds_bos == (token is not None) and ours.special[token or "<s>"] == ours.bos_id
    assert common.bos(ours) + ours.encode("then we") == ids_of(reference, "then we")


@pytest.mark.parametrize("config, processor, adds", [
    ({"add_bos_token": False}, TEMPLATE, False), ({"add_bos_token": True}, None, True),
    ({"add_bos_token": None}, TEMPLATE, True), ({"add_bos_token": True, "bos_token": None}, None, False),
    ({"bos_token": "<|a|>"}, None, False), ({"bos_token": "<|a|>", "add_bos_token": True}, None, True),
    ({}, None, False)])
def test_tokenizer_config_says_whether_a_bos_is_put(trained, tmp_path, config, processor, adds):
    file = with_processor(trained["smollm2"][0], processor)
    ours = load_tokenizer(write(tmp_path, file, tokenizer_config=config))
    assert ours.adds_bos is adds and common.bos(ours) == ([ours.bos_id] if adds else [])


def test_a_bos_of_the_other_kinds_of_files(trained, tmp_path):
    """Meta's own code puts one before every prompt, and the built-in worlds begin with theirs."""
    ranks = load_tokenizer(write_ranks(tmp_path, trained["llama3"][0]))
    assert common.bos(ranks) == [ranks.special["<|begin_of_text|>"]]
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert common.bos(load_tokenizer(tmp_path)) == [] and load_tokenizer(tmp_path).bos_id == ranks.bos_id
    for vocab, bos in [(["a", "<s>"], [1]), (["a", "b"], [])]:
        (tmp_path / "words").mkdir(exist_ok=True)
        (tmp_path / "words" / "vocab.json").write_text(json.dumps(vocab))
        assert common.bos(load_tokenizer(tmp_path / "words")) == bos
    assert common.bos(load_tokenizer("bytes")) == []


# ---- long runs

@LAYOUTS
def test_the_way_of_long_runs_gives_the_same_ids(trained, monkeypatch, layout):
    """On every text here, as if each of them had a run that tiktoken cannot go through."""
    reference, ours = trained[layout]
    monkeypatch.setattr(tokenizer, "LONG_RUN", re.compile(""))
    for text in [*TEXTS, "a\x1c\x1d \x1eb", "a\x85 \xa0b", " \x0b\x0c1"]:
        check(ours, reference, text)
    assert ours.encode("a\ud800b") == ours.encode("a\ufffdb")


def test_a_million_blanks(trained):
    reference, ours = trained["smollm2"]
    text = "! \n" + "\t\n" * 500_000 + " 'll"
    assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_looking_for_long_runs_is_quick(trained):
    start = time.perf_counter()
    trained["gpt2"][1].encode((" " * 90_000 + "x") * 5)
    assert time.perf_counter() - start < 5  # each run is gone through once, not once from each of its blanks


def test_what_beats_tiktoken_is_a_sentence(trained, monkeypatch):
    class PanicException(BaseException):  # as pyo3 has it
        pass

    def beaten(text):
        raise PanicException("called `Result::unwrap()` on an `Err` value:\nRuntimeError(StackOverflow)")

    ours = trained["gpt2"][1]
    monkeypatch.setattr(ours, "_encoding", SimpleNamespace(encode_ordinary=beaten))
    found = "'aa.*' of 100 characters cannot be cut .*StackOverflow.*: use shorter text"
    with pytest.raises(ValueError, match=found) as error:
        ours.encode("a" * 100)
    one_line(error)


# ---- vocab.json

NANO = ["<s>", "=", ";", *"abcdefghijklmnop", "blue", "blueb", " blue", "\n", "é", "日本", ".*", "</s>"]


def test_word_list_round_trip(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(NANO))
    ours = load_tokenizer(tmp_path)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (len(NANO), 0, len(NANO) - 1)
    assert ours.special == {"<s>": 0, "</s>": len(NANO) - 1}
    for i, token in enumerate(NANO):
        assert ours.encode(token, special=True) == [i] and ours.decode([i]) == token
    tokens = ["a", "b", "blueb", "e", "=", " blue", ";", "\n", "日本", "é", ".*"]
    assert ours.encode("".join(tokens), bos=True) == [0] + [NANO.index(token) for token in tokens]
    assert ours.decode(ours.encode("".join(tokens))) == "".join(tokens)
    assert ours.encode("ab=ba;<s>a", special=True)[-2:] == [0, NANO.index("a")]


@pytest.mark.parametrize("text, message", [
    ("ab=q", "no token for 'q', character 3 of 'ab=q'"), ("日本z", "no token for 'z', character 2 of '日本z'"),
    ("日a", "no token for '日', character 0 of '日a'"), ("a<s>", "no token for '<', character 1 of 'a<s>'"),
    ("a🙂", "no token for '🙂', character 1 of 'a🙂'"), ("a\r", r"no token for '\\r', character 1 of 'a\\r'")])
def test_text_outside_the_word_list_is_named(tmp_path, text, message):
    (tmp_path / "vocab.json").write_text(json.dumps(NANO))
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path).encode(text)
    one_line(error)


@settings(repeatable, max_examples=50)
@given(words=st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=30, unique=True), data=st.data())
def test_word_list_takes_the_longest_token(tmp_path_factory, words, data):
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.json").write_text(json.dumps(words))
    ours = load_tokenizer(folder)
    plain = [word for word in words if word not in ours.special]
    text = "".join(data.draw(st.lists(st.sampled_from(plain), max_size=8))) if plain else ""
    expected, rest = [], text
    while rest:  # the definition, which may run aground where another cut would not
        token = max((word for word in plain if rest.startswith(word)), key=len, default=None)
        if token is None:
            with pytest.raises(ValueError, match="no token for"):
                ours.encode(text)
            return
        expected.append(words.index(token))
        rest = rest[len(token):]
    assert ours.encode(text) == expected and ours.decode(expected) == text


@pytest.mark.parametrize("vocab, found", [
    ({"a": 0}, "expected a JSON list"), (["a", ""], "token 1 is ''"), (["a", 3], "not a list of words"),
    (["a", "b", "a"], "token 2 is 'a', which is empty or comes twice")])
def test_a_broken_word_list_is_refused(tmp_path, vocab, found):
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    refused(tmp_path, "vocab.json", found)


# ---- what is refused

def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 800, error.value


def refused(folder, *found, kind=ValueError):
    with pytest.raises(kind) as error:
        load_tokenizer(folder)
    one_line(error)
    for value in found:
        assert value in str(error.value), error.value


def test_no_file_at_all(tmp_path):
    (tmp_path / "merges.txt").write_text("a b")
    for folder in (tmp_path, tmp_path / "absent"):
        refused(folder, str(folder), "tokenizer.json", "tokenizer.model", "vocab.json", kind=FileNotFoundError)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
@pytest.mark.parametrize("data", [b'["a", ', b"\xff\xfe", b"", b"3"])
def test_broken_json_is_named(tmp_path, name, data):
    (tmp_path / "vocab.json").write_text("[\"a\"]")
    (tmp_path / name).write_bytes(data)
    refused(tmp_path, name)


@pytest.mark.parametrize("name, data", [("tokenizer.model", ""), ("vocab.json", "[]"), ("vocab.json", '["<s>"]')])
def test_a_file_without_tokens_is_refused(tmp_path, name, data):
    (tmp_path / name).write_text(data)
    refused(tmp_path, name, "has no tokens")


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}


def steps(*pre_tokenizers):
    return {"type": "Sequence", "pretokenizers": list(pre_tokenizers)}


@pytest.mark.parametrize("change, found", [
    ({"model": {"type": "Unigram", "vocab": []}}, "model type 'Unigram'"),
    ({"model": {"type": "WordPiece", "vocab": {}}}, "model type 'WordPiece'"),
    ({"model": None}, "model type None"),
    ({"model": {"type": "BPE"}, "added_tokens": None}, "no 'merges'"),
    ({"model.byte_fallback": True}, "byte_fallback True"),
    ({"model.dropout": 0.1}, "dropout 0.1"),
    ({"model.end_of_word_suffix": "</w>"}, "end_of_word_suffix '</w>'"),
    ({"model.continuing_subword_prefix": "##"}, "continuing_subword_prefix '##'"),
    ({"model.merges": [], "model.vocab": {"a\u4e2d": 0}}, "token 'a\u4e2d'"),
    ({"model.merges": ["t h e"]}, "byte-level BPE"),
    ({"model.merges": [["q", "qqqqq"]]}, "merge ['q', 'qqqqq']"),
    ({"normalizer": {"type": "NFKC"}}, "NFKC"),
    ({"pre_tokenizer": None}, "pre-tokenizer {}"),
    ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, "Metaspace"),
    ({"pre_tokenizer": BYTE_LEVEL}, '"use_regex": false'),
    ({"pre_tokenizer": steps({**SPLIT, "behavior": "Removed"}, BYTE_LEVEL)}, "Removed"),
    ({"pre_tokenizer": steps({**SPLIT, "pattern": {"Regex": "\\w+"}}, BYTE_LEVEL)}, "w+"),
    ({"pre_tokenizer": steps(SPLIT, {**BYTE_LEVEL, "add_prefix_space": True})}, "Split"),
    ({"pre_tokenizer": steps({"type": "Digits", "individual_digits": False}, {**BYTE_LEVEL, "use_regex": True})},
     "Digits"),
    ({"added_tokens": [{"content": "<mask>", "id": 0, "special": True, "lstrip": True}]}, "'<mask>' with lstrip")])
def test_another_kind_of_json_is_refused(trained, tmp_path, change, found):
    file = layout_of(trained["gpt2"][0])
    for key, value in change.items():
        place = file["model"] if key.startswith("model.") else file
        place[key.removeprefix("model.")] = value
    refused(write(tmp_path, file), "tokenizer.json", found, "byte-level BPE")


def test_an_empty_normalizer_is_none(trained, tmp_path):
    file = layout_of(trained["gpt2"][0]) | {"normalizer": {"type": "Sequence", "normalizers": []}}
    assert load_tokenizer(write(tmp_path, file)).encode("a") == trained["gpt2"][1].encode("a")


@pytest.mark.parametrize("config, found", [
    ({"bos_token": {"x": 1}}, "bos_token {'x': 1}"), ({"bos_token": {"content": 3}}, "bos_token 3"),
    ({"eos_token": ["<s>"]}, "eos_token ['<s>']"), ({"bos_token": 0}, "bos_token 0"),
    ({"add_bos_token": "false"}, "add_bos_token 'false', expected true or false")])
def test_a_tokenizer_config_of_another_shape_is_refused(trained, tmp_path, config, found):
    refused(write(tmp_path, layout_of(trained["gpt2"][0]), tokenizer_config=config), "tokenizer_config.json", found)


SMALL = {"added_tokens": [{"id": 3, "content": "<s>", "special": True, "lstrip": False}, {"id": 4, "content": "ab c"}],
         "normalizer": None, "pre_tokenizer": steps({"type": "Digits", "individual_digits": True},
                                                    {**BYTE_LEVEL, "use_regex": True}),
         "post_processor": {"type": "Sequence", "processors": [TEMPLATE]},
         "model": {"type": "BPE", "dropout": None, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}
JUNK = None, True, 3, -1, 10**30, 1.5, float("nan"), "x", "", "\ud800", [], {}, [[]], [None], {"x": 1}, {"type": []}


def places(value, path=()):
    """Every place in a value, as the keys that lead to it."""
    if path:
        yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_whatever_stands_in_a_file_it_is_read_or_refused_in_a_sentence(every, tmp_path):
    """Every value of a small file is in turn replaced by junk, and left out; in the suite a fourth of these cases."""
    assert load_tokenizer(write(tmp_path, SMALL)).encode("abab c") == [2, 4]
    n_refused = 0
    for path, junk in list(product(places(SMALL), (*JUNK, KeyError)))[::every]:
        file = deepcopy(SMALL)
        place = file
        for key in path[:-1]:
            place = place[key]
        if junk is KeyError:
            del place[path[-1]]
        else:
            place[path[-1]] = junk
        write(tmp_path, file)
        try:
            ours = load_tokenizer(tmp_path)
            ours.decode(ours.encode("ab", special=True))
        except ValueError as error:
            n_refused += 1
            said = str(error)
            assert "\n" not in said and len(said) < 800 and "tokenizer.json" in said, (path, junk, said)
    assert n_refused > 300 / every


@pytest.mark.parametrize("change, found", [
    ({"added_tokens": [{"id": "3", "content": "<s>", "special": True}]}, "the id '3' for b'<s>'"),
    ({"added_tokens": [{"id": 2, "content": "<s>", "special": True}]}, "the id 2 for b'ab' and for b'<s>'"),
    ({"added_tokens": [{"id": 9, "content": "b", "special": True}]}, "the token 'b' twice"),
    ({"added_tokens": [{"id": i, "content": "<s>", "special": True} for i in (3, 4)]}, "the token '<s>' twice"),
    ({"vocab": {"a": -1, "b": 1, "ab": 2}}, "the id -1 for b'a'"),
    ({"vocab": {"a": 10**9, "b": 1, "ab": 2}}, "the id 1000000000 for b'a'"),
    ({"vocab": {"a": 1, "b": 1, "ab": 2}}, "the id 1 for b'a' and for b'b'"),
    ({"post_processor": TEMPLATE, "added_tokens": []}, "puts '<s>' first, which is no token")])
def test_ids_and_tokens_that_cannot_be_are_named(tmp_path, change, found):
    file = deepcopy(SMALL)
    for key, value in change.items():
        (file["model"] if key == "vocab" else file)[key] = value
    refused(write(tmp_path, file), "tokenizer.json", found)


def test_half_a_surrogate_in_a_vocabulary(tmp_path):
    (tmp_path / "vocab.json").write_text('["a", "\\ud800"]')
    refused(tmp_path, "vocab.json", "surrogates")


def test_a_bos_that_is_no_special_token_is_refused(trained, tmp_path):
    write(tmp_path, layout_of(trained["gpt2"][0]), tokenizer_config={"bos_token": "<bos>"})
    refused(tmp_path, "tokenizer_config.json", "bos_token '<bos>'")
