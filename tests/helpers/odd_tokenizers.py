"""Tokenizers in the manner of the classes that transformers has, with the templates of `tiny_tokenizers`.

What is odd about them: an unknown token that is also the end token, control tokens that are also pieces of the model's
own vocabulary, normalizers that change the text, thousands of added tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from tiny_tokenizers import FAMILIES, SENTENCES
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})


def gpt2(control: Sequence[str]) -> Tokenizer:
    """Byte-level BPE; GPT2Tokenizer and GPTNeoXTokenizer name one token as beginning, end and unknown."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return _trained(backend, control, pre_tokenizers.ByteLevel.alphabet())


def neox(control: Sequence[str]) -> Tokenizer:
    """Byte-level BPE after NFC, with runs of spaces as added tokens."""
    backend = gpt2(control)
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken(" " * length, normalized=True) for length in range(2, 8)])
    return backend


def llama2(control: Sequence[str]) -> Tokenizer:
    """SentencePiece's BPE with byte fallback: the mark of a word is put before every stretch of plain text."""
    pieces = ["<unk>", *control, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = [chr(code) for code in range(33, 127)]
    merges = [("▁", letter) for letter in letters] + list(product("theino", "theino"))
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *letters, *("".join(m) for m in merges)]))}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", *control)])
    return backend


def unigram(control: Sequence[str], byte_fallback: bool = False) -> Tokenizer:
    """SentencePiece's unigrams (T5, ALBERT): the control tokens are pieces with the best of all scores, 0."""
    scored = [("<unk>", 0.0), *((token, 0.0) for token in control)]
    scored += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] if byte_fallback else []
    scored += [("▁", -2.0), *((chr(code), -8.0) for code in range(33, 127)), *((f"▁{word}", -5.0) for word in WORDS)]
    backend = Tokenizer(models.Unigram(list(dict(scored).items()), 0, byte_fallback))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", *control)])
    return backend


def bert(control: Sequence[str]) -> Tokenizer:
    """WordPiece over lower-case letters without accents; whatever is not in the vocabulary is one unknown token."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = sorted({word.lower().strip(".,:;") for word in WORDS})
    pieces = ["[UNK]", *control, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=30))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("[UNK]", *control)])
    return backend


def words(control: Sequence[str]) -> Tokenizer:
    """Whole words between white space; the unknown token is what `control` ends with."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*control, *WORDS]))}
    backend = Tokenizer(models.WordLevel(vocabulary, control[-1]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    return backend


def gemma(control: Sequence[str], size: int = 2000, unused: int = 60) -> Tokenizer:
    """One BPE over the whole text without splitting it first, byte fallback, and many special tokens without use."""
    added = ["<pad>", "<unk>", *control, *(f"<unused{number}>" for number in range(unused))]
    letters = [chr(code) for code in range(33, 127)]
    merges = list(product("abcdefghijklmnopqrstuvwxyz", repeat=2))
    merges += [("".join(two), "".join(more)) for two in merges for more in merges if two < more]
    pieces = [*added, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", *letters]
    merges = merges[: size - len(pieces)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *("".join(merge) for merge in merges)])}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    return backend


BACKENDS = {
    "gpt2": (gpt2, "eos"),
    "neox": (neox, "eos"),
    "llama2": (llama2, "<unk>"),
    "unigram": (unigram, "<unk>"),
    "bert": (bert, "[UNK]"),
    "words": (words, "eos"),
    "gemma": (gemma, "<unk>"),
}
"""Name: how it is made, and its unknown token, where "eos" is the end token itself."""


def odd_tokenizer(name: str, family: str = "chatml", **options) -> PreTrainedTokenizerFast:
    """The tokenizer class `name` with the chat template and control tokens of `family`."""
    make, unknown = BACKENDS[name]
    template, bos, eos, others, _ = FAMILIES[family]
    control = list(dict.fromkeys(token for token in (bos, *others, eos) if token))
    named = {"bos_token": bos, "eos_token": eos, "unk_token": eos if unknown == "eos" else unknown}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make(control, **options), **{key: token for key, token in named.items() if token}
    )
    tokenizer.chat_template = template
    return tokenizer


def _trained(backend: Tokenizer, control: Sequence[str], alphabet: Sequence[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=list(control), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 4, trainer)
    return backend
