"""A base vocabulary, and what becomes of it with new tokens, for the vocabulary benchmark."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from benchmarks.vocabulary.mistral_tokenizers import sentencepiece_v3, tekken
from optim.adaptivocab.corpus import Corpus
from optim.adaptivocab.selection.hierarchical import barriers
from optim.adaptivocab.selection.removal import Removal, choose
from optim.adaptivocab.selection.vocabulary_builder import Builder, Built
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.adaptivocab.tokenizer.export import tokenizer_of
from optim.adaptivocab.tokenizer.segmentation import Segmenter
from optim.model import load_tokenizer
from optim.resources import InProcess

NOTHING = Removal([], {}, 0, 0)
VOCABULARIES: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], bool]] = {
    "mistral-v0.3-32k": (sentencepiece_v3, True),
    "tekken-131k": (tekken, True),
    "demo-4k": (lambda: load_tokenizer("optim/demo_model"), False),
}
"""Maker, and whether new tokens replace old ones: 4,096 are too few to take 10,000 away."""


@dataclass
class Vocabulary:
    """A base vocabulary and the domains' tokens in it."""

    name: str
    replaces: bool
    tokenizer: Tokenizer
    base: BaseVocabulary
    counts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str) -> Vocabulary:
        make, replaces = VOCABULARIES[name]
        tokenizer = make()
        return cls(name, replaces, tokenizer.backend_tokenizer, BaseVocabulary.of(tokenizer))

    def builder(self, removal: Removal, corpus: Corpus, num_tokens: int) -> Builder:
        ids = sorted(removal.ids)
        ids += range(self.base.size, self.base.size + num_tokens - len(ids))
        return Builder(self.base, removal, ids, corpus.train, corpus.dev, InProcess(), quiet)

    def removal(self, num_tokens: int, corpora: dict[str, Corpus]) -> Removal:
        """What is removed for new tokens, given the texts in which it must not be missed."""
        for name, corpus in corpora.items():
            if name not in self.counts:
                whole = self.builder(NOTHING, corpus, 0)
                encoded = whole.encoded(self.tokenizer, corpus.train, cut=False)
                self.counts[name] = encoded.counts_V(self.base.size)
        return choose(self.base, sum(self.counts[name] for name in corpora), num_tokens)

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        return token_ids(self.tokenizer, texts)


@dataclass
class Adapted:
    """A vocabulary with new tokens, and how it encodes."""

    base: BaseVocabulary
    removal: Removal
    built: Built

    @cached_property
    def native(self) -> Tokenizer:
        assert self.built.document is not None
        return tokenizer_of(self.built.document)

    def segmenter(self, method: Any) -> Segmenter:
        new = dict(enumerate(self.built.expansions, self.base.size))
        return Segmenter(new, self.removal.expansions, method, barriers(self.base))

    def num_tokens(self, texts: Sequence[str], base_ids: list[list[int]]) -> int:
        if self.built.document is not None:
            return size_of(token_ids(self.native, texts))
        segmenter = self.segmenter(self.built.method)
        return sum(len(segmenter.segment(ids)) for ids in base_ids)


def quiet(stage: str) -> None:
    """Stages are not shown."""


def say(text: str) -> None:
    """What a long measurement is at."""
    print(text, file=sys.stderr, flush=True)


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def size_of(ids: list[list[int]]) -> int:
    return sum(map(len, ids))
