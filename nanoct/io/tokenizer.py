"""Text to token ids and back: `load_tokenizer(folder)` reads the tokenizer file that a model comes with.

tokenizer.json    byte-level BPE as Hugging Face `tokenizers` writes it: Llama-3.x, Qwen, SmolLM2, GPT-2, and more
tokenizer.model   Llama-3's tiktoken ranks, one "base64 rank" a line (Meta's llama-models repository)
vocab.json        the built-in model's vocabulary, a list of strings: encoding takes the longest token at each place

The first of these files that is there is read. Each becomes a `tiktoken.Encoding`: a regex that cuts text into pieces,
and the tokens in the order of their merges, their ranks. Ids may be in another order (SmolLM2 gives the lowest ids to
special tokens), so a table maps ranks to ids. Nothing is fetched or cached.
"""
import base64
import hashlib
import json
import re
import unicodedata
from bisect import bisect_right
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken

from nanoct.io.files import read_bytes, read_json, reading

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Each digit is a piece, and GPT2 cuts what lies between; as one regex. Whitespace before a digit ends its part
SMOLLM = r"'s|'t|'re|'ve|'m|'ll|'d|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
# Regexes of these parts cut a text alike in Oniguruma, which `tokenizers` uses, and in tiktoken's engine. Others need
# not: \w has other characters there, $ is another place, x{1,3}+ has another meaning, and (?i:ss) finds an ß.
CHARACTER = r"(?:\\p\{(?:[LMNPS]|L[ultmo]|Nd)\}|\\[sSrn]|a-z|A-Z|0-9|[A-Za-z0-9 '/!,;=<>_@])"
ONE_OF = rf"(?:{CHARACTER}|\[\^?{CHARACTER}+\])"
TIMES = r"(?:[?*+]|\{[12](?:,[3-9]?)?\})?"
PARTS = rf"(?:(?:{ONE_OF}|{re.escape(CONTRACTIONS)}){TIMES}|\(\?!{ONE_OF}\)|\|)"
PORTABLE = re.compile(rf"(?:{PARTS}|\(\?:{PARTS}+\){TIMES})+")
# The NFC of `tokenizers` is that of Unicode 9: it neither moves nor joins these characters, which came later
YOUNG = re.compile("([\u05c8\u05c9\u07fd\u0897-\u08d3\u09fe\u0c3c\u0d3b\u0d3c\u0eba\u1715\u1abf-\u1af0\u1df6-\u1dfa"
                   "\ua82c\U000105c9-\U000105e4\U00010d24-\U00010f85\U00011070\U0001133b"
                   "\U00011383-\U000113d0\U0001145e\U00011839-\U00011a99\U00011d42-\U0001612f"
                   "\U00016d68-\U00016ff1\U0001d127\U0001d128\U0001d250-\U0001d281\U0001e08f-\U0001e6f5]+)")

NAMED = """begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id step_id
    start_header_id end_header_id eom_id eot_id python_tag image""".split()
LLAMA3_SPECIAL = [f"<|{name}|>" for name in NAMED + [f"reserved_special_token_{i}" for i in range(2, 246)]]

# GPT-2's alphabet: printable Latin-1 characters stand for their own byte, those from U+0100 on for the other bytes
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
ALPHABET = PRINTABLE + [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_OF = {chr(byte if byte in PRINTABLE else 256 + i - len(PRINTABLE)): byte for i, byte in enumerate(ALPHABET)}

LONG_RUN = re.compile(r"(?<!\s)\s{100000}")  # of blanks: tiktoken's regex fails before a million
MOST_IDS = 10**7


class Tokenizer:
    """One vocabulary: `vocab_size` (highest id + 1), `special` (name -> id), `bos_id` and `eos_id` (int or None).

    bos, eos: beginning and end of sequence. adds_bos: whether the model's own tokenizer, and so its training, puts
    bos_id before a text.

    pattern: regex of the pieces. merges: the tokens that text can become, as bytes, first merge first. ids: all
    ordinary tokens, bytes -> id. special, plain: added tokens, name -> id; plain ones are always found in text,
    special ones if asked. nfc: whether text becomes Unicode's normal form C. late: the added tokens that are looked for
    behind that, where the others have been cut out.
    """

    def __init__(self, source, pattern, merges, ids, special, plain=(), prefix_space=False, nfc=False, late=(),
                 bos_id=None, eos_id=None, adds_bos=False):
        self.source, self.special, self.plain, self.prefix_space = source, special, dict(plain), prefix_space
        self.bos_id, self.eos_id, self._nfc, self._beyond, self._padding = bos_id, eos_id, nfc, {}, {}
        self.adds_bos, self._pattern = adds_bos and self.bos_id is not None, pattern
        added = self.plain | special
        self._first = {name: name for name in added if name not in late}  # what is looked for: its name
        self._late = {self._normal(name): name for name in added if name in late}
        # compiled once, as escaping Llama-3's 256 names takes ten times as long as the ids of a short text
        self._find_first, self._find_late = _any_of(self._first), _any_of(self._late)
        # tiktoken panics at a byte without a rank: bytes that no token covers get the last ranks, and no id
        uncovered = list({bytes([byte]) for byte in range(256)}.difference(merges))
        ranks = {token: rank for rank, token in enumerate(merges + uncovered)}
        with _no_panic(f"{source} cannot be used"):
            self._encoding = tiktoken.Encoding(str(source), pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._ids = [ids[token] for token in merges] + [None] * len(uncovered)
        self._bytes = {i: token for token, i in ids.items()}
        self._bytes |= {i: name.encode() for name, i in added.items()}
        self.vocab_size = max(self._bytes) + 1

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits that change with any id that a text can get or stand for; bos is no part of it."""
        tokens = [(i, token.hex()) for i, token in sorted(self._bytes.items())]
        added = [sorted(names.items()) for names in (self.special, self.plain, self._late)]
        content = json.dumps([self._pattern, self.prefix_space, self._nfc, self._ids, tokens, added])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        """Ids of `text`, bos_id first if `bos`; the names of special tokens are plain text unless `special`.

        Raises ValueError for a character that no token covers, for `bos` without a bos_id, and for a special token that
        the model of check_belongs lacks.
        """
        if bos and self.bos_id is None:
            raise ValueError(f"bos=True, but {self.source} has no beginning-of-sequence token: use bos=False")
        ids, id_of = [self.bos_id] if bos else [], self.plain | self.special
        for part, start, first in self._cut(text, self._find_first, self._first, special):
            for piece, at, late in self._cut(self._normal(part), self._find_late, self._late, special):
                ids += self._encode_plain(piece, at, part, start)
                ids += [id_of[late]] if late else []
            ids += [id_of[first]] if first else []
        return ids

    def _cut(self, text, pattern, name_of, special):
        """Cut text at added tokens: (text before one, where it starts, the token's name or None at the end) each."""
        start = 0
        for match in pattern.finditer(text):
            name = name_of[match[0]]
            if special and name in self._beyond:
                raise ValueError(f"{self.source} has the id {self.special[name]} for {name!r}, and the model has "
                                 f"{self._beyond[name]} tokens: leave it out of the text")
            if special or name in self.plain:
                yield text[start:match.start()], start, name
                start = match.end()
        yield text[start:], start, None

    def _normal(self, text):
        if not self._nfc or text.isascii():
            return text
        parts = YOUNG.split(text)  # the odd ones are young
        return "".join(part if i % 2 else unicodedata.normalize("NFC", part) for i, part in enumerate(parts))

    def _encode_plain(self, text, at, part, start):
        """Ids of `text`, which stands at `at` in the normal form of `part`, which stands at `start` of the user's."""
        space = " " if self.prefix_space and text and text[0] != " " else ""
        ids = [self._ids[rank] for rank in self._ranks(space + text)]
        if None in ids:
            before = b"".join(self._bytes[i] for i in ids[:ids.index(None)]).decode(errors="ignore")
            i = len(before) - len(space)
            # in the user's text it is where the normal form of what has been read grows beyond it
            place = bisect_right(range(len(part)), at + i, key=lambda end: len(self._normal(part[:end + 1])))
            raise ValueError(f"{self.source} has no token for {text[i]!r}, character {start + place} of {part[:60]!r}: "
                             "use another tokenizer, or other text")
        return ids

    def _ranks(self, text):
        with _no_panic(f"{text[:60]!r} of {len(text):,} characters cannot be cut into pieces"):
            if not LONG_RUN.search(text):
                return self._encoding.encode_ordinary(text)
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as tiktoken does
            ranks = map(self._encoding._encode_single_piece, self._pieces.findall(text))
            return [rank for of_piece in ranks for rank in of_piece]

    @cached_property
    def _pieces(self):
        """The pattern for `regex`, whose stack has no limit; it knows the same blanks, and the newest letters too."""
        return regex.compile(self._pattern)

    def check_belongs(self, vocab_size):
        """Raise ValueError if the model's vocab_size is below that of the tokenizer, or far above it.

        A little above is fine: models pad their vocabulary. Special tokens may lie beyond the model, such as a [PAD]
        that was added to the tokenizer alone, but for bos and eos: no text becomes them, and encode refuses to.
        """
        beyond = {name: vocab_size for name, i in self.special.items()
                  if i >= vocab_size and i not in (self.bos_id, self.eos_id, *self._ids)}
        needed = 1 + max(self._bytes.keys() - {self.special[name] for name in beyond})
        fits = self.source == "bytes" or self.vocab_size >= 0.9 * vocab_size
        if needed > vocab_size or not fits:
            raise ValueError(f"{self.source} has {self.vocab_size} tokens and the model {vocab_size}: they do not "
                             "belong together; give the model's own tokenizer.")
        self._beyond = beyond
        self._padding = dict.fromkeys(range(self.vocab_size, vocab_size), "\ufffd".encode())  # a model may say them

    def decode(self, ids) -> str:
        """Text of `ids`, special tokens by name; U+FFFD for invalid UTF-8 and for ids that pad the model's vocabulary.

        Raises ValueError for another id of no token.
        """
        try:
            parts = [self._bytes[i] if i in self._bytes else self._padding[i] for i in map(int, ids)]
            return b"".join(parts).decode(errors="replace")
        except KeyError as error:
            raise ValueError(f"no token has id {error}: {self.source} has ids 0 to {self.vocab_size - 1}") from None


def load_tokenizer(folder) -> Tokenizer:
    """Load the tokenizer of the model in `folder`; "bytes" gives UTF-8 bytes as ids 0 to 255, for models without one.

    bos and eos are those of tokenizer_config.json, or else Llama-3's, or "<s>" and "</s>", or as eos "<|endoftext|>".
    adds_bos, whether bos goes before a text, is add_bos_token of tokenizer_config.json. If that is not given, adds_bos
    is true for tokenizer.model and vocab.json. For tokenizer.json it is true if its post-processor puts a token first:
    Llama-3's does, SmolLM2 and GPT-2 have none.
    Raises FileNotFoundError without a known file, ValueError for one that is broken or of an unsupported kind.
    """
    if folder == "bytes":
        ids = {bytes([byte]): byte for byte in range(256)}
        return Tokenizer("bytes", r"[\s\S]", list(ids), ids, special={})
    folder = Path(folder)
    file = next((folder / name for name in KINDS if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no tokenizer.json, tokenizer.model (Llama-3) or vocab.json in {folder}: "
                                "put the tokenizer file of the model there")
    read, kind = KINDS[file.name]
    with reading(file, kind, "use the tokenizer of another model, or fetch it again"):
        first, fields = read(file)
        _check_ids(fields)
        return Tokenizer(file, **fields, **_ends(folder / "tokenizer_config.json", file, fields, first))


def _ends(path, file, fields, first):
    """bos_id, eos_id and adds_bos of tokenizer_config.json at `path`, or else of the tokenizer's file.

    first: the token that this file puts before a text; True: bos; None: no token. A token may be an ordinary one.
    """
    config, found, added = read_json(path, kind=dict) if path.is_file() else {}, {}, fields.get("plain", {})
    id_of = lambda name: (fields["special"] | added).get(name, fields["ids"].get(name.encode()))
    usually = dict(bos=["<|begin_of_text|>", "<s>"], eos=["<|end_of_text|>", "</s>", "<|endoftext|>"])
    with reading(path, "a tokenizer_config.json that fits", "fetch it again"):
        for key, usual in usually.items():
            token = config.get(key + "_token", next((name for name in usual if name in fields["special"]), None))
            token = token.get("content", token) if isinstance(token, dict) else token
            found[key + "_id"] = id_of(token) if isinstance(token, str) else None
            if token is not None and found[key + "_id"] is None:
                raise ValueError(f"it has {key}_token {token!r:.60}, which {file} has no token for")
            if key == "eos" and token is not None:  # it ends an answer, whatever the file calls it
                fields["special"].setdefault(token, found["eos_id"])
        said = config.get("add_bos_token")
        if said not in (None, True, False):
            raise ValueError(f"it has add_bos_token {said!r:.60}, expected true or false")
    if said is None and isinstance(first, str):
        found["bos_id"] = id_of(first)
        if found["bos_id"] is None:
            raise ValueError(f"it puts {first!r:.60} first, which is no token of it")
    return found | dict(adds_bos=bool(first if said is None else said))


def _check_ids(fields):
    """Raise ValueError unless there are tokens, each with an id of its own from 0 to below MOST_IDS."""
    tokens = [*fields["ids"].items()]
    if not tokens:
        raise ValueError("it has no tokens")
    for kind in "special", "plain":
        tokens += [(name.encode(), i) for name, i in fields.get(kind, {}).items()]
    names = {}
    for token, i in tokens:
        if type(i) is not int or not 0 <= i < MOST_IDS:
            raise ValueError(f"it has the id {i!r:.60} for {token[:60]!r}, expected a number up to {MOST_IDS:,}")
        if names.setdefault(i, token) != token:
            raise ValueError(f"it has the id {i} for {names[i][:60]!r} and for {token[:60]!r}")


@contextmanager
def _no_panic(what):
    """Turn a ValueError or panic of tiktoken's Rust code, which is no Exception, into a ValueError with a sentence."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException" and not isinstance(error, ValueError):
            raise
        said = " ".join(str(error).split())
        raise ValueError(f"{what} (tiktoken: {said:.200}): use shorter text, or another tokenizer") from None


def _llama3(path):
    ids = {}
    for number, line in enumerate(read_bytes(path).splitlines()):
        token, rank = line.split()
        ids[base64.b64decode(token, validate=True)] = int(rank)
        if int(rank) != number or len(ids) != number + 1:
            raise ValueError(f"line {number + 1} repeats a token or is out of order")
    special = {name: len(ids) + i for i, name in enumerate(LLAMA3_SPECIAL)}
    return True, dict(pattern=LLAMA3, merges=list(ids), ids=ids, special=special)


def _word_list(path):
    vocab = {}
    for i, token in enumerate(read_json(path, kind=list)):
        if not token or token in vocab:
            raise ValueError(f"token {i} is {token!r:.60}, which is empty or comes twice")
        vocab[token] = i
    special = {token: i for token, i in vocab.items() if re.fullmatch("<.+>", token)}
    words = sorted((token for token in vocab if token not in special), key=len, reverse=True)
    ids = {word.encode(): vocab[word] for word in words}
    pattern = "|".join([*map(re.escape, words), r"[\s\S]"])
    return True, dict(pattern=pattern, merges=list(ids), ids=ids, special=special)


def _hugging_face(path):
    file = read_json(path, kind=dict)
    model, normalizer = file["model"] or {}, file.get("normalizer")
    if (kind := model.get("type", "BPE" if "merges" in model else None)) != "BPE":  # old files name no type
        raise ValueError(f"it has the model type {kind!r:.60}")
    for option in "byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix":
        if model.get(option):
            raise ValueError(f"it has {option} {model[option]!r:.60}")
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        normalizer = normalizer["normalizers"]
    if normalizer and normalizer not in ({"type": "NFC"}, [{"type": "NFC"}]):
        raise ValueError(f"it has the normalizer {json.dumps(normalizer)[:100]}")
    pattern, prefix_space = _pieces(file.get("pre_tokenizer") or {})
    added = {}
    for token in file.get("added_tokens") or []:
        if not token["content"]:
            raise ValueError("it has an added token without a name")
        if token["content"] in added or model["vocab"].get(token["content"], token["id"]) != token["id"]:
            raise ValueError(f"it has the token {token['content']!r:.60} twice, with one id and another")
        for option in "lstrip", "rstrip", "single_word":
            if token.get(option):
                raise ValueError(f"it has an added token {token['content']!r:.60} with {option}")
        added[token["content"]] = token
    special = {name: token["id"] for name, token in added.items() if token.get("special")}
    plain = {name: token["id"] for name, token in added.items() if name not in special}
    late = {name for name, token in added.items() if token.get("normalized", name in plain)}
    rank_of = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if not model["vocab"].keys() >= {left, right, left + right}:
            raise ValueError(f"its merge {merge!r:.60} makes no token of its vocabulary of two others")
        rank_of[left, right] = rank
    # `tokenizers` merges two neighbours that are listed, tiktoken two that are a token together. Both do the same on
    # any text if a token has the rank of the merge that completes it when its own bytes are merged, and none if no
    # merge does: two neighbours that are a token together have been merged from its bytes alone.
    made, whole = {}, []
    for token in model["vocab"]:
        parts, last = _merged(token, rank_of)
        if len(parts) == 1:
            made[token] = last
        elif model.get("ignore_merges") and token not in added:
            whole.append(token)  # found if it is a whole piece
            if len(parts) == 2:
                raise ValueError(f"its token {token!r:.60} is a whole piece alone and two tokens in a longer one, as "
                                 "no merge makes it")
    ids = {_as_bytes(token): i for token, i in model["vocab"].items()
           if token in made or token not in added}  # an added token that is a byte is still that
    merges = [*map(_as_bytes, [*sorted(made, key=made.get), *whole])]
    fields = dict(merges=merges, ids=ids, special=special, plain=plain, late=late, nfc=bool(normalizer))
    return _first(file.get("post_processor")), fields | dict(pattern=pattern, prefix_space=prefix_space)


def _merged(token, rank_of):
    """What merging makes of a token's own characters: the parts, and the rank of the last merge, -1 without one.

    rank_of: {(left, right): rank}. The lowest rank is merged first, and the leftmost pair of it.
    """
    parts, last = list(token), -1
    while known := [rank_of[pair] for pair in pairwise(parts) if pair in rank_of]:
        last = min(known)
        i = [rank_of.get(pair) for pair in pairwise(parts)].index(last)
        parts[i] += parts.pop(i + 1)
    return parts, last


def _any_of(names):
    """The pattern of the names, the longest first; without names it is found nowhere."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _as_bytes(token):
    """The bytes of a token in GPT-2's alphabet."""
    if not token or not BYTE_OF.keys() >= set(token):
        raise ValueError(f"it has token {token!r:.60}, not spelled in GPT-2's byte alphabet")
    return bytes(BYTE_OF[character] for character in token)


def _first(processor):
    """The token that a tokenizer.json's post-processor puts before a text, or None."""
    match processor:
        case {"type": "Sequence", "processors": list(steps)}:
            return next(filter(None, map(_first, steps)), None)
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(name)}}, *_]}:
            return name
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": [str(name), *_]}:
            return name


def _pieces(pre_tokenizer):
    """(regex of the pieces, whether text gets a leading space) of a tokenizer.json's pre-tokenizer."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    match [{"use_regex": True, **step} for step in steps]:  # old files lack use_regex
        case [{"type": "Split", "pattern": {"Regex": str(split)}, "behavior": "Isolated", "invert": False},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
              ] if PORTABLE.fullmatch(split) and not regex.match(split, ""):
            return rf"{split}|(?:(?!{split})[\s\S])+", False  # what lies between the matches is a piece too
        case [{"type": "Digits", "individual_digits": True},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return SMOLLM, False
        case [{"type": "ByteLevel", "add_prefix_space": bool(prefix_space), "use_regex": True}]:
            return GPT2, prefix_space
    raise ValueError(f"it has the pre-tokenizer {json.dumps(pre_tokenizer)[:250]}")


KINDS = {  # name of a file -> its reader, and what it should be
    "tokenizer.json": (_hugging_face, "byte-level BPE as Llama-3, Qwen and GPT-2 have it, with NFC or no normalizer"),
    "tokenizer.model": (_llama3, "Llama-3's lines of base64 and rank, but another kind, such as SentencePiece's"),
    "vocab.json": (_word_list, "a list of words"),
}
