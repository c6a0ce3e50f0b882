"""From texts to a vocabulary: what goes, what comes, and which kind of tokenizer it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from tokenizers import Tokenizer

from optim.adaptivocab.encoded_texts import EncodedTexts, encode, joined, replaced
from optim.adaptivocab.selection import paper
from optim.adaptivocab.selection.hierarchical import Rules, Selection, barriers, pruned, select
from optim.adaptivocab.selection.removal import Removal
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.adaptivocab.tokenizer.export import Document, extended, parity, reduced, tokenizer_of
from optim.adaptivocab.tokenizer.segmentation import Segmenter
from optim.errors import InputError
from optim.resources import Resources

OnStage = Callable[[str], None]
Selector = Literal["hierarchical", "paper", "words"]
Encoding = Literal["native", "patch"]

CAPS: tuple[int | None, ...] = (3, 4, 6, None)
"""Longest tokens that are tried, in base tokens."""
SHARD_CHARACTERS = 4 << 20
"""Of a corpus, encoded by one process at a time."""
PRUNED_FROM = 2
"""Times the wanted tokens that are chosen before the least useful are dropped."""


@dataclass(frozen=True)
class Recipe:
    """How new tokens are chosen."""

    selector: Selector
    num_tokens: int
    encoding: Literal["auto", "native", "patch"] = "auto"
    longest: int | None = None
    """Base tokens of a new one; None is 3 for the paper's selection, and the best of `CAPS` on dev
    texts for ours."""
    least_texts: int = 2


@dataclass(frozen=True)
class Built:
    """New tokens and how texts are encoded with them."""

    encoding: Encoding
    method: Literal["merges", "dp", "greedy"]
    names: list[str]
    expansions: list[tuple[int, ...]]
    document: Document | None
    """The plain tokenizer.json of a native encoding."""
    longest: int | None
    """The cap that was chosen."""
    tried: dict[str, int] = field(default_factory=dict)
    """Cap -> tokens of the dev texts with it."""
    notes: tuple[str, ...] = ()


class Builder:
    """Chooses new tokens for a base vocabulary, of which some are gone."""

    def __init__(
        self,
        base: BaseVocabulary,
        removal: Removal,
        ids: Sequence[int],
        train: Sequence[str],
        dev: Sequence[str],
        resources: Resources,
        on_stage: OnStage,
    ) -> None:
        self.base, self.removal, self.ids = base, removal, list(ids)
        self._train, self._dev = list(train), list(dev)
        self._resources, self._on_stage = resources, on_stage

    def build(self, recipe: Recipe) -> Built:
        """The vocabulary of a recipe; InputError where the texts have too few tokens to give."""
        if recipe.selector != "hierarchical":
            if recipe.encoding == "native":
                raise InputError(
                    f"the selection `{recipe.selector}` has no merges, which a plain "
                    "tokenizer.json would need",
                    field="--encoding",
                    mend="Use --encoding patch, or --selector hierarchical",
                )
            return self._published(recipe)
        if recipe.encoding == "patch":
            return self._patched(recipe)
        document = reduced(self.base, self.removal.ids)
        if document is None:
            return self._not_native(recipe, "its pre-tokenizer is of a kind that is not known")
        built = self._native(recipe, document)
        assert built.document is not None
        self._on_stage("checking the exported tokenizer against its reference")
        found = parity(self.base, built.document, self._names(built.names), self._merges, self._dev)
        if not found.holds:
            return self._not_native(
                recipe,
                f"of {found.num_texts} dev texts {found.num_drifted} are cut otherwise by the base "
                f"vocabulary, and {found.num_different} differ from the reference",
            )
        return built

    def _not_native(self, recipe: Recipe, reason: str) -> Built:
        if recipe.encoding == "native":
            raise InputError(
                f"no plain tokenizer.json can stand for it: {reason}",
                field="--encoding",
                mend="Use --encoding auto, or patch",
            )
        built = self._patched(recipe)
        note = f"Encoded by the patch layer, since a plain tokenizer.json would differ: {reason}."
        self._on_stage(note)
        return Built(**{**built.__dict__, "notes": (*built.notes, note)})

    def _names(self, names: Sequence[str]) -> dict[str, int]:
        return dict(zip(names, self.ids, strict=False))

    # --- a plain tokenizer.json ----------------------------------------------------------------

    def _native(self, recipe: Recipe, document: Document) -> Built:
        without = tokenizer_of(document)
        texts = self.encoded(without, self._train, cut=self.base.kind == "byte-level")
        found: dict[int | None, tuple[int, Selection]] = {}
        for cap in self._caps(recipe):
            chosen = self._chosen(texts, recipe, recipe.num_tokens, cap, is_native=True)
            made = extended(document, self._names(chosen.names), chosen.merges)
            found[cap] = (self.num_tokens(tokenizer_of(made), self._dev), chosen)
            self._on_stage(f"{found[cap][0]} tokens on dev texts, {_cap(cap)}")
        best = min(found, key=lambda cap: found[cap][0])
        chosen = self._enough(found[best][1], recipe)
        self._merges = chosen.merges
        return Built(
            encoding="native",
            method="merges",
            names=chosen.names,
            expansions=chosen.expansions,
            document=extended(document, self._names(chosen.names), chosen.merges),
            longest=best,
            tried={_cap(cap): size for cap, (size, _) in found.items()},
        )

    def _caps(self, recipe: Recipe) -> tuple[int | None, ...]:
        return CAPS if recipe.longest is None else (recipe.longest,)

    def _chosen(
        self,
        texts: EncodedTexts,
        recipe: Recipe,
        num_tokens: int,
        cap: int | None,
        *,
        is_native: bool,
    ) -> Selection:
        self._on_stage(f"selecting {num_tokens} tokens from {len(texts)}, {_cap(cap)}")
        return select(
            texts,
            self.base,
            num_tokens,
            Rules(cap, least_texts=recipe.least_texts),
            removed=dict.fromkeys(self.removal.ids, ()),
            is_native=is_native,
            on_stage=self._on_stage,
        )

    # --- the patch layer -----------------------------------------------------------------------

    def _patched(self, recipe: Recipe) -> Built:
        texts, dev = self._decomposed(self._train), self._decomposed(self._dev)
        found: dict[int | None, tuple[int, Selection]] = {}
        for cap in self._caps(recipe):
            more = self._chosen(
                texts, recipe, PRUNED_FROM * recipe.num_tokens, cap, is_native=False
            )
            chosen = pruned(more, texts, recipe.num_tokens, self.base.size)
            found[cap] = (self._covered(chosen.expansions, dev, "dp"), chosen)
            self._on_stage(f"{found[cap][0]} tokens on dev texts, {_cap(cap)}")
        best = min(found, key=lambda cap: found[cap][0])
        chosen = self._enough(found[best][1], recipe)
        return Built(
            encoding="patch",
            method="dp",
            names=chosen.names,
            expansions=chosen.expansions,
            document=None,
            longest=best,
            tried={_cap(cap): size for cap, (size, _) in found.items()},
        )

    def _published(self, recipe: Recipe) -> Built:
        texts = self._decomposed(self._train)
        longest = recipe.longest or 3
        self._on_stage(f"selecting {recipe.num_tokens} tokens from {len(texts)}")
        expansions = paper.select(
            texts,
            self.base,
            recipe.num_tokens,
            longest=longest,
            words_only=recipe.selector == "words",
            on_stage=self._on_stage,
        )
        names = ["".join(self.base.tokens[i] for i in parts) for parts in expansions]
        chosen = self._enough(Selection(names, expansions, []), recipe)
        return Built("patch", "greedy", chosen.names, chosen.expansions, None, longest)

    def _decomposed(self, texts: Sequence[str]) -> EncodedTexts:
        original = tokenizer_of(self.base.document)
        whole = self.encoded(original, texts, cut=False)
        return replaced(whole, self.removal.expansions)

    def _covered(
        self, expansions: Sequence[tuple[int, ...]], texts: EncodedTexts, method: Any
    ) -> int:
        new = {self.base.size + place: parts for place, parts in enumerate(expansions)}
        segmenter = Segmenter(new, method=method, barriers=barriers(self.base))
        return len(segmenter.cover(texts.ids_T.tolist()))

    # --- texts ---------------------------------------------------------------------------------

    def encoded(self, tokenizer: Tokenizer, texts: Sequence[str], *, cut: bool) -> EncodedTexts:
        """Texts as ids, encoded in shards by as many processes as there are."""
        shards = list(shards_of(texts))
        calls = [
            partial(_encode_shard, tokenizer.to_str(), shard, barriers(self.base), cut)
            for shard in shards
        ]
        return joined(self._resources.run(calls, self._on_stage))

    def num_tokens(self, tokenizer: Tokenizer, texts: Sequence[str]) -> int:
        """Tokens of texts, without special ones around them."""
        return len(encode(tokenizer, texts, barriers=(), cut=False))

    def _enough(self, chosen: Selection, recipe: Recipe) -> Selection:
        wanted, found = recipe.num_tokens, len(chosen.names)
        if found < wanted:
            raise InputError(
                f"the corpus is too small for {wanted} new tokens: {found} sequences of tokens "
                "come back in it often enough",
                field="--data",
                mend=f"Give more text, or ask for {found} or fewer"
                if found
                else "Give more text of the domain",
            )
        return chosen


def shards_of(texts: Sequence[str]) -> list[list[str]]:
    """Texts in lists of about `SHARD_CHARACTERS`, none of them cut."""
    shards: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if size >= SHARD_CHARACTERS:
            shards.append([])
            size = 0
        shards[-1].append(text)
        size += len(text)
    return shards


def _encode_shard(
    document: str, texts: list[str], barred: frozenset[int], cut: bool, on_stage: OnStage
) -> EncodedTexts:
    return encode(Tokenizer.from_str(document), texts, barriers=barred, cut=cut)


def _cap(cap: int | None) -> str:
    return "of any length" if cap is None else f"of up to {cap} base tokens"
