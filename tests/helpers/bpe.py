"""Small byte-level tokenizers of the `tokenizers` library, and texts that find where two differ."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")  # spelled out once more: the published file must be accepted as it is
QWEN = LLAMA3.replace("{1,3}", "")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
          r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")

WORDS = ["the", "and", "they", "we", "there", "then", "can", "zebra", "Sure", "naïve", "größer", "мир", "日本語",
         "नमस्ते", "x1", "2024", "3.14", "ⅷ", "¾", "return", "don't", "IT'S", "you'll", "it'ſ",
         "I'Llama", "👩‍👩‍👧", "é", "🙂🙂",
         "<|a|>", "<s>", "hello", ";", "...", "!?", "->", "==", "\u200b", "\ufeff", "\x00", "\x7f", "\u0085",
         "\ufffd", "ﬁ", "ß"]
SPACES = ["", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u2028"]
CORPUS = [a + space + b for a in WORDS for b in WORDS for space in (" ", "  ", "\n") if "<" not in a + b]
CORPUS += ["'s", "'ll", "sX", "llX", " !", "! !", " #", "# #", " 7", "7 7"] * 100
TEXTS = [*(word + space + word for word in WORDS for space in SPACES), "".join(SPACES), " ".join(WORDS), "".join(WORDS),
         "", " ", "a", "\n", "12345 6  7 \n8", "a  5", "a \n 5\n", "  <|a|>  <s>x<|a|><|ab|>", "<|a|",
         "it'sX I'llX IT'SX 'tX", "WE'LL ARE'D",
         "e\u0301a\u0301\u0323 \u212b \u1100\u1161\u11a8 \u0958", "camelCase HTTPServer", "a/b//c\n/",
         "a\u1ac5\u0323\u0301 \U00011935\U00011930 \u0898\u0301\u0323",
         "a ! # b !! ##7 7  #", "x" * 3000, " " * 3000, "ab12" * 500]


def train(layout, **options):
    """A small byte-level BPE of the `tokenizers` library in one of seven layouts.

    It is trained on uncut text, so there are merges across every border that the layout's pre-tokenizer must keep.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=layout in ("llama3", "tekken")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<|a|>", "<s>", "<|ab|>", "<|endoftext|>"]
    first = special if layout == "smollm2" else []  # low ids for special tokens
    options = {"vocab_size": 900, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), **options}
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(special_tokens=first, show_progress=False, **options))
    tokenizer.add_special_tokens(special)
    if layout == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    split = lambda pattern: pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.pre_tokenizer = {
        "llama3": split(LLAMA3), "smaug": split(LLAMA3), "qwen": split(QWEN), "tekken": split(TEKKEN),
        "smollm2": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                            pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "prefix_space": pre_tokenizers.ByteLevel(add_prefix_space=True)}[layout]
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
