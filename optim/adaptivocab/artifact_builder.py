"""The making of an adapted model, from its texts to the files of an artifact."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from optim.adaptivocab.adapted_models import Adapting
from optim.adaptivocab.artifact import Manifest, Source, TokenCount, write_manifest
from optim.adaptivocab.corpus import Corpus, gather
from optim.adaptivocab.encoded_texts import batches
from optim.adaptivocab.official.reader import adapted, read_official
from optim.adaptivocab.selection.removal import Removal, choose, num_removable, under_trained
from optim.adaptivocab.selection.vocabulary_builder import Builder, Built, Recipe
from optim.adaptivocab.settings import AdaptivocabSettings
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.adaptivocab.tokenizer.tokens import table
from optim.adaptivocab.tokenizer_files import write_tokenizer
from optim.errors import InputError
from optim.model import LanguageModel, load_tokenizer
from optim.resources import Resources

OnStage = Callable[[str], None]
MIB = 1 << 20
NOTHING = Removal([], {}, 0, 0)


class Making:
    """One preparation while it is made."""

    def __init__(
        self,
        settings: AdaptivocabSettings,
        lm: LanguageModel,
        base: BaseVocabulary,
        resources: Resources,
        on_stage: OnStage,
    ) -> None:
        self.settings, self.lm, self.base = settings, lm, base
        self.resources, self.on_stage = resources, on_stage
        self.protected: Corpus | None = None
        self.notes: list[str] = []

    def read(self, corpus: Iterable[str]) -> None:
        """Read the texts; InputError where they cannot be, or are too few."""
        settings = self.settings
        num_bytes = int(settings.corpus_mib * MIB)
        self.on_stage("reading the corpus")
        self.texts = gather(corpus, num_bytes, settings.held_out, on_stage=self.on_stage)
        if settings.protect:
            others = chain.from_iterable(map(self.resources.read, settings.protect))
            self.protected = gather(others, num_bytes, settings.held_out, field="--protect")

    def write(self, folder: Path, work: Path, source: str) -> str:
        """Make everything in `folder`, tuning in `work`; returns the artifact's fingerprint."""
        removal, ids, built = self._built()
        names, parts = built.names, built.expansions
        tokens = table(self.base, ids[: len(names)], names, parts, removal.expansions, removal.ids)
        tokens.write(folder)
        write_tokenizer(folder, self.lm.tokenizer, tokens, built)
        adapting = Adapting(
            self.settings, self.lm, self.texts, tokens, self.resources, self.on_stage
        )
        adapting.write(folder)
        quality, facts = adapting.tune(folder, work)
        self.on_stage("counting what is saved on held-out texts")
        texts = self.texts
        manifest = Manifest(
            base=self.lm.identity(),
            model_type=self.lm.model.config.model_type,
            settings=self.settings.model_dump(mode="json", exclude_defaults=True),
            mode="replace" if self.settings.expand is None else "expand",
            num_new=len(tokens.new),
            num_removed=len(tokens.removed),
            num_unreachable=removal.num_unreachable,
            encoding=built.encoding,
            method=built.method,
            longest=built.longest,
            dev_tokens=built.tried,
            is_tied=adapting.is_tied,
            data=_source(source, texts),
            protected=self._protected_source(),
            dev=self._counted(folder, texts.dev),
            held_out=self._counted(folder, texts.held_out),
            off_domain=self._counted(folder, self.protected.held_out) if self.protected else None,
            quality=quality,
            segment_bytes=self.settings.segment_bytes,
            measured_bytes=adapting.measured_bytes,
            tuning=facts.get("adapted"),
            control=facts.get("control"),
            notes=[*built.notes, *self.notes],
            files={},
            versions={
                name: importlib.metadata.version(name)
                for name in ("optrial", "tokenizers", "torch", "transformers")
            },
        )
        self.on_stage(_summary(manifest))
        return write_manifest(folder, manifest)

    def _protected_source(self) -> Source | None:
        if self.protected is None:
            return None
        return _source(", ".join(self.settings.protect), self.protected)

    # --- vocabulary ----------------------------------------------------------------------------

    def _built(self) -> tuple[Removal, list[int], Built]:
        """What is removed, the ids for new tokens, and the new tokens."""
        settings = self.settings
        if settings.official is not None:
            return self._imported(settings.official)
        removal, ids = self._places()
        recipe = Recipe(
            selector=settings.selector,
            num_tokens=settings.num_tokens,
            encoding=settings.encoding,
            longest=settings.longest,
            least_texts=settings.least_texts,
        )
        texts = self.texts
        builder = Builder(
            self.base, removal, ids, texts.train, texts.dev, self.resources, self.on_stage
        )
        return removal, ids, builder.build(recipe)

    def _imported(self, path: str) -> tuple[Removal, list[int], Built]:
        """The tokens of the authors' file; where more come than go, some get rows of their own."""
        official = read_official(path)
        removed, expansions = adapted(official, self.lm.tokenizer)
        self.notes += official.faults
        ids = sorted(removed)
        ids += range(self.base.size, self.base.size + max(0, len(expansions) - len(ids)))
        # A row that nothing new takes would be one that its token cannot be encoded to.
        gone = ids[: len(expansions)] if len(expansions) < len(removed) else sorted(removed)
        removal = Removal(gone, {i: removed[i] for i in gone}, 0, 0)
        names = ["".join(self.base.tokens[i] for i in parts) for parts in expansions]
        return removal, ids, Built("patch", "greedy", names, expansions, None, None)

    def _places(self) -> tuple[Removal, list[int]]:
        wanted = self.settings.num_tokens
        rows_VD = self.lm.model.get_input_embeddings().weight.detach()
        if self.settings.expand is not None:
            return NOTHING, list(range(self.base.size, self.base.size + wanted))
        # Rows that no token has, which models have to be of a round size, cost nothing.
        free = list(range(self.base.size, len(rows_VD)))[:wanted]
        most = num_removable(self.base) + len(free)
        if wanted > most:
            raise InputError(
                f"{wanted} tokens cannot be replaced: {most} can, the others are bytes, letters "
                "and special tokens",
                field="--replace",
                mend=f"Ask for {most} or fewer, or use --expand",
            )
        self.on_stage(f"choosing {wanted - len(free)} tokens to remove")
        counts_V = self._counts(self.texts.train)
        if self.protected is not None:
            counts_V = counts_V + self._counts(self.protected.train)
        dead = under_trained(self.base, rows_VD)
        removal = choose(self.base, counts_V, wanted - len(free), under_trained=dead)
        return removal, [*free, *sorted(removal.ids)]

    def _counts(self, texts: list[str]) -> npt.NDArray[np.int64]:
        builder = Builder(self.base, NOTHING, [], [], [], self.resources, self.on_stage)
        encoded = builder.encoded(self.lm.tokenizer.backend_tokenizer, texts, cut=False)
        return encoded.counts_V(self.base.size)

    def _counted(self, folder: Path, texts: list[str]) -> TokenCount:
        adapted_tokenizer = load_tokenizer(str(folder))
        num_base = num_new = 0
        for batch in batches(texts):
            for tokenizer, is_new in ((self.lm.tokenizer, False), (adapted_tokenizer, True)):
                encoded = tokenizer(
                    batch, add_special_tokens=False, return_attention_mask=False, verbose=False
                )
                size = sum(map(len, encoded["input_ids"]))
                num_new += size if is_new else 0
                num_base += 0 if is_new else size
        num_bytes = sum(len(text.encode()) for text in texts)
        return TokenCount(num_bytes=num_bytes, base_tokens=num_base, tokens=num_new)


def _summary(manifest: Manifest) -> str:
    """What came of it, in a line."""
    held_out, quality = manifest.held_out, manifest.quality
    parts = [
        f"{held_out.base_tokens:,} tokens of held-out text are {held_out.tokens:,} now, "
        f"{held_out.saving:.1%} fewer ({manifest.encoding})"
    ]
    if manifest.off_domain is not None:
        parts.append(f"{-manifest.off_domain.saving:+.2%} on protected text")
    found = {
        "untouched": quality.base,
        "adapted": quality.adapted,
        "tuned control": quality.tuned,
        "adapted and tuned": quality.adapted_tuned,
    }
    figures = [f"{name} {value:.4f}" for name, value in found.items() if value is not None]
    return f"{'; '.join(parts)}; bits per byte: {', '.join(figures)}"


def _source(name: str, corpus: Corpus) -> Source:
    return Source(
        source=name,
        sha256=corpus.sha256,
        num_texts=len(corpus.train) + len(corpus.dev) + len(corpus.held_out),
        num_bytes=corpus.num_bytes,
        is_cut=corpus.is_cut,
    )
