"""Tokenizers of every kind that is supported, most of them trained here, and strings that try them.

The small ones are trained on a few documents in a second; they stand for the families whose
pre-tokenizers, normalizers and decoders they have.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import optim
from benchmarks.vocabulary.mistral_tokenizers import sentencepiece_v3, tekken
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary, byte_symbols

END = "<|end|>"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")
# Enough of scripts without spaces for tokens of parts of two characters.
FOREIGN = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。「何でも薄暗い」、所で！"
    "На дне колодца — вода; “тихо”… नमस्ते, दुनिया। مرحبا بالعالم، Žluťoučký kůň — 12½ €. "
)
WORDS = sorted(topics)


def document(base: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A tokenizer's tokenizer.json."""
    parsed: dict[str, Any] = json.loads(base.backend_tokenizer.to_str())
    return parsed


def wrapped(made: Tokenizer | dict[str, Any], **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers around one."""
    if isinstance(made, dict):
        made = Tokenizer.from_str(json.dumps(made))
    options.setdefault("clean_up_tokenization_spaces", False)
    return PreTrainedTokenizerFast(tokenizer_object=made, **options)


def prose() -> list[str]:
    """About 680 kB of English, with examples of code: the documents that ship with Python."""
    return [topics[name] for name in WORDS]


@cache
def sources(num_files: int = 20) -> list[str]:
    """Files of Python's library, of 20 kB each at most."""
    files = sorted(Path(json.__file__).parent.parent.glob("*.py"))
    return [file.read_text(encoding="utf-8")[:20_000] for file in files[:num_files]]


def _foreign(num_texts: int = 200) -> list[str]:
    generator = random.Random(3)
    return ["".join(generator.choices(FOREIGN, k=80)) + FOREIGN for _ in range(num_texts)]


def _trained(made: Tokenizer, size: int, alphabet: Sequence[str], special: Sequence[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=list(alphabet),
        special_tokens=list(special),
        show_progress=False,
    )
    texts = [*prose()[::4], *(source[:4000] for source in sources()), *_foreign()]
    made.train_from_iterator(texts, trainer)


def byte_level(
    steps: Sequence[Any], *, size: int = 3000, normalizer: Any = None, is_inside: bool = False
) -> Tokenizer:
    """A byte-level tokenizer with such steps of a pre-tokenizer, trained.

    Its added token is in the vocabulary, or else has the id after the vocabulary's last.
    """
    made = Tokenizer(models.BPE())
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(list(steps))
    made.decoder = decoders.ByteLevel()
    _trained(made, size, list(byte_symbols().values()), [END] if is_inside else [])
    made.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    return made


def _split(pattern: str) -> list[Any]:
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


@cache
def demo() -> PreTrainedTokenizerFast:
    """The shipped model's."""
    return AutoTokenizer.from_pretrained(Path(optim.__file__).parent / "demo_model")


@cache
def gpt2_style() -> PreTrainedTokenizerFast:
    """Cut by the expression that `ByteLevel` has of its own."""
    made = byte_level(
        [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)], is_inside=True
    )
    return wrapped(made, eos_token=END)


@cache
def llama3_style() -> PreTrainedTokenizerFast:
    """Cut by an expression of its own, digits by three; words that are tokens need no merges."""
    parsed = json.loads(byte_level(_split(LLAMA3_PATTERN)).to_str())
    parsed["model"]["ignore_merges"] = True
    return wrapped(parsed, eos_token=END)


@cache
def qwen2_style() -> PreTrainedTokenizerFast:
    """Normalized to NFC, so lossy; every digit by itself."""
    made = byte_level(_split(QWEN2_PATTERN), normalizer=normalizers.NFC())
    return wrapped(made, eos_token=END)


@cache
def two_splits() -> PreTrainedTokenizerFast:
    """Cut by two expressions, one after the other, as DeepSeek's: no single one is known."""
    steps = [pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), behavior="isolated")]
    return wrapped(byte_level([*steps, *_split(QWEN2_PATTERN)], size=1000), eos_token=END)


def _byte_fallback(size: int, normalizer: Any, pre_tokenizer: Any, decoder: Any) -> dict[str, Any]:
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer, made.decoder = normalizer, decoder
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁[^▁]*"), behavior="isolated")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    _trained(made, size, [], ["<unk>", "<s>", "</s>", *byte_tokens])
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    parsed: dict[str, Any] = json.loads(made.to_str())
    if pre_tokenizer is None:
        parsed["pre_tokenizer"] = None
    parsed["added_tokens"] = [
        entry for entry in parsed["added_tokens"] if entry["content"] not in byte_tokens
    ]
    return parsed


@cache
def gemma_style() -> PreTrainedTokenizerFast:
    """Characters with bytes as a fallback, an idle cut at spaces, nothing added to a text."""
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    parsed = _byte_fallback(
        2500,
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(" ", behavior="merged_with_previous"),
        decoder,
    )
    return wrapped(parsed, unk_token="<unk>", eos_token="</s>", bos_token="<s>")


@cache
def metaspace_style() -> PreTrainedTokenizerFast:
    """As transformers makes Llama 2's: a `Metaspace` that puts a space first and cuts nothing."""
    decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    parsed = _byte_fallback(2500, normalizers.Replace(" ", "▁"), metaspace, decoder)
    parsed["normalizer"] = None
    return wrapped(parsed, unk_token="<unk>", eos_token="</s>", bos_token="<s>")


BYTE_LEVEL: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "demo": demo,
    "gpt2": gpt2_style,
    "llama3": llama3_style,
    "qwen2": qwen2_style,
    "tekken": tekken,
}
SENTENCEPIECE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gemma": gemma_style,
    "metaspace": metaspace_style,
    "mistral": sentencepiece_v3,
}
BASES = BYTE_LEVEL | SENTENCEPIECE


@cache
def base(name: str) -> BaseVocabulary:
    """One of `BASES`, taken apart."""
    return BaseVocabulary.of(BASES[name]())


def toy(words: Iterable[str], *, alphabet: str = "abc ", **model: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of these bytes and merges (`a+b`), in this order, cut as GPT-2's."""
    pairs = [tuple(word.replace(" ", "Ġ").split("+")) for word in words]
    letters = [byte_symbols()[byte] for byte in alphabet.encode()]
    names = dict.fromkeys([*letters, *(left + right for left, right in pairs)])
    ids = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocab=ids, merges=pairs, **model))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    return wrapped(made, eos_token=END)


# --- strings ------------------------------------------------------------------------------------

PIECES = (
    "Ġ", "▁", "<0xE2>", "<0x0A>", "<s>", "</s>", END, "<|endoftext|>", "<unk>", "[INST]",
    "e\u0301\u0323\u0308", "👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "\ufeff", "\0", "\u200f",
    "\u202e", "\u2066", "\r\n", "\r", "\n\n\n", "\t\t", " ", "   ", "\u00a0", "\u3000", "\u2028",
    "\x85", "\x1c", "\x1f", "\x1b[0m", "'s", "'LL", "don't", "self.", "the ", " statement",
    "日本語", "である。「何", "नमस्ते", "مرحبا", "ﷺ", "ﬁ", "İ", "ß", "ſ", "１２", "½", "2024", " 10",
    "3.14", "�",
)  # fmt: skip
FEW = "aZ 09\n\r\t.'_-\u00a0\u3000éж日。ー\u0301\u0903½²٣€👍\x1c\x85\u0897"
"""Of every class some: their sequences are all the cuts that there are."""
PLANES = [(0, 0xD7FF), (0xE000, 0xFFFF), *((p << 16, (p << 16) + 0xFFFF) for p in range(1, 17))]


def nasty(num_strings: int, seed: int = 20260) -> list[str]:
    """Strings of pieces, runs, cuts of documents, and characters of all planes."""
    generator = random.Random(seed)
    text = "\n".join([*topics.values(), *sources(), *_foreign(3)])
    return ["", *PIECES, *(_nasty(generator, text) for _ in range(num_strings))]


def _nasty(generator: random.Random, text: str) -> str:
    parts = []
    for _ in range(generator.randrange(13)):
        kind = generator.randrange(6)
        if kind == 0:
            start = generator.randrange(len(text))
            parts.append(text[start : start + generator.randrange(60)])
        elif kind == 1:
            low, high = generator.choice(PLANES)
            parts += [chr(generator.randint(low, high)) for _ in range(generator.randrange(4))]
        elif kind == 2:
            parts.append(generator.choice(" \n\t\r a0") * generator.randrange(9))
        elif kind == 3:
            parts += generator.choices(FEW, k=generator.randrange(9))
        else:
            parts.append(generator.choice(PIECES))
    return "".join(parts)
