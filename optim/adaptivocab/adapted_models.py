"""The models of an artifact: rows for new tokens, tuning, and what both come to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optim.adaptivocab.artifact import CONTROL, Quality
from optim.adaptivocab.corpus import Corpus
from optim.adaptivocab.encoded_texts import batches
from optim.adaptivocab.settings import AdaptivocabSettings
from optim.adaptivocab.tokenizer.tokens import Tokens
from optim.adaptivocab.training.calibration import calibrate
from optim.adaptivocab.training.embeddings import extend
from optim.adaptivocab.training.model_folders import (
    measure,
    measure_folder,
    read_facts,
    stored_dtype,
    tune_folder,
    write_model,
)
from optim.adaptivocab.training.segments import cut, fitting, size_bytes
from optim.model import LanguageModel, load_tokenizer
from optim.resources import Resources

OnStage = Callable[[str], None]
MIB = 1 << 20
Facts = dict[str, dict[str, Any]]
"""What tuning did: `adapted`, and `control` where there is one."""


class Adapting:
    """Makes the adapted model and its control, in folders whose tokenizers are there."""

    def __init__(
        self,
        settings: AdaptivocabSettings,
        lm: LanguageModel,
        texts: Corpus,
        tokens: Tokens,
        resources: Resources,
        on_stage: OnStage,
    ) -> None:
        self.settings, self.lm, self.texts, self.tokens = settings, lm, texts, tokens
        self.resources, self.on_stage = resources, on_stage
        self._tuned_on: tuple[list[str], list[bool]] | None = None
        self.measured_bytes = 0
        """Of held-out text, that bits per byte were measured on."""

    @property
    def is_tied(self) -> bool:
        """Whether the adapted model's embeddings and head are one matrix."""
        config = self.lm.model.config.get_text_config(decoder=True)
        return bool(config.tie_word_embeddings) and self.settings.tied == "symmetric"

    @property
    def _has_control(self) -> bool:
        return self.settings.tune and self.settings.control

    def write(self, folder: Path) -> None:
        """Write the adapted model before tuning, and the control."""
        self.on_stage("making rows for the new tokens")
        dtype, settings = stored_dtype(self.lm), self.settings
        expansions = self.tokens.expansions()
        made = extend(
            self.lm.model, expansions, init=settings.init, tied=settings.tied, seed=settings.seed
        )
        made.config.save_pretrained(folder)  # By it the tokenizer is found.
        if settings.calibrate and not self.is_tied:
            self._calibrate(made, folder)
        write_model(made, folder, dtype)
        if self._has_control:
            # The same room to learn in: untied where the adapted model is.
            write_model(extend(self.lm.model, {}, tied=settings.tied), folder / CONTROL, dtype)
            self.lm.tokenizer.save_pretrained(folder / CONTROL)

    def _calibrate(self, made: PreTrainedModel, folder: Path) -> None:
        tokenizer, texts = load_tokenizer(str(folder)), self.texts.train
        calibrate(
            made,
            self.lm,
            self.tokens.expansions(),
            _counts(tokenizer, texts),
            _counts(self.lm.tokenizer, texts),
            self.tuning_segments(folder)[0],
        )

    def tune(self, folder: Path, work: Path) -> tuple[Quality, Facts]:
        """Tune both models where they lie; their quality, and what was done."""
        settings, device = self.settings, self.lm.device.type
        held_out = self._measured_segments(folder)
        folders = {"adapted": folder}
        if self._has_control:
            folders["control"] = folder / CONTROL
        self._say_cost(folder, held_out, len(folders))
        self.on_stage("measuring bits per byte before tuning")
        before = measure_folder(folder, held_out, device, "adapted", self.on_stage)
        base = measure(self.lm, held_out, "untouched", self.on_stage)
        if not settings.tune:
            quality = Quality(base=base, tuned=None, adapted=before, adapted_tuned=None)
            return quality, {}
        facts = self._tune_all(folder, folders, work)
        self.on_stage("measuring bits per byte after tuning")
        after = {
            name: measure_folder(each, held_out, device, f"tuned {name}", self.on_stage)
            for name, each in folders.items()
        }
        quality = Quality(
            base=base, tuned=after.get("control"), adapted=before, adapted_tuned=after["adapted"]
        )
        return quality, facts

    def _measured_segments(self, folder: Path) -> list[str]:
        """Of held-out texts, in the order of their hashes, up to the bytes that are measured."""
        left = int(self.settings.measure_mib * MIB)
        found: list[str] = []
        for segment in chain.from_iterable(
            self._segments(folder, sorted(self.texts.held_out, key=_digest))
        ):
            left -= size_bytes(segment)
            if left < 0 and found:
                break
            found.append(segment)
        self.measured_bytes = sum(map(size_bytes, found))
        return found

    def _say_cost(self, folder: Path, held_out: list[str], num_models: int) -> None:
        measured = f"bits per byte on {_mib(held_out):.3g} MiB of held-out text"
        if not self.settings.tune:
            self.on_stage(f"ahead: {measured}")
            return
        models = "two models" if num_models == 2 else "one model"
        times = "" if self.settings.epochs == 1 else f" {self.settings.epochs:g} times"
        tuned = _mib(self.tuning_segments(folder)[0])
        self.on_stage(f"ahead: tuning {models} on {tuned:.3g} MiB of text{times}, {measured}")

    def _tune_all(self, folder: Path, folders: dict[str, Path], work: Path) -> Facts:
        segments, ends = self.tuning_segments(folder)
        new_ids = [token.id for token in self.tokens.new]
        calls = [
            partial(
                tune_folder,
                each,
                segments,
                ends,
                self.settings.tuning,
                new_ids if name == "adapted" else [],
                work / name,
                self.lm.device.type,
                name,
            )
            for name, each in folders.items()
        ]
        if self.settings.workers > 1:
            for call in calls:
                self.resources.train(call, self.settings.workers, self.on_stage)
        else:
            self.resources.run(calls, self.on_stage)
        return {name: read_facts(work / name) for name in folders}

    def _segments(self, folder: Path, texts: Iterable[str]) -> Iterator[list[str]]:
        """Those of each text: of as many bytes as the settings say, or less where a model would
        have no room for that many tokens, whichever of the two tokenizers made them."""
        room = self.lm.context_length
        # Tokens are at most as many as bytes, but for what a normaliser adds.
        if room is None or room >= 2 * self.settings.segment_bytes:
            yield from (list(cut([text], self.settings.segment_bytes)) for text in texts)
            return
        tokenizers = [self.lm.tokenizer, load_tokenizer(str(folder))]
        for text in texts:
            # A start token stands in front of them, and an end token may follow.
            found = fitting(cut([text], self.settings.segment_bytes), tokenizers, room - 2)
            yield list(found)

    def tuning_segments(self, folder: Path) -> tuple[list[str], list[bool]]:
        """Training texts up to the bytes that are to be tuned on, and where texts end; made once.

        By the hash of the texts, so that a part of a corpus is a sample of all of it.
        """
        if self._tuned_on is None:
            self._tuned_on = self._found_segments(folder)
        return self._tuned_on

    def _found_segments(self, folder: Path) -> tuple[list[str], list[bool]]:
        left = int(self.settings.tune_mib * MIB)
        segments: list[str] = []
        ends: list[bool] = []
        for found in self._segments(folder, sorted(self.texts.train, key=_digest)):
            for segment in found:
                left -= len(segment.encode())
                if left < 0 and segments:
                    return segments, ends
                segments.append(segment)
                ends.append(False)
            ends[-1] = True
        return segments, ends


def _mib(segments: Iterable[str]) -> float:
    return sum(map(size_bytes, segments)) / MIB


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _counts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Counter[int]:
    """How often each id occurs in the encoding of texts."""
    found: Counter[int] = Counter()
    for batch in batches(texts):
        encoded = tokenizer(
            batch, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        for ids in encoded["input_ids"]:
            found.update(ids)
    return found
