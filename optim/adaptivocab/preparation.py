"""`optrial prepare adaptivocab`: from a model and domain text to an adapted model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from optim.adaptivocab.base import BaseVocabulary
from optim.adaptivocab.building import Selector
from optim.adaptivocab.embeddings import Init, Tied
from optim.adaptivocab.making import Making
from optim.adaptivocab.tuning_settings import Tuning
from optim.errors import InputError
from optim.model import LanguageModel
from optim.new_folder import beside, publish, require_new
from optim.resources import InProcess, Resources

OnStage = Callable[[str], None]
DEFAULT_TOKENS = 10_000


class AdaptivocabPreparation(Tuning):
    """How an adapted model is made. The corpus is text of the domain, and tunes the model too."""

    name: ClassVar[str] = "adaptivocab"
    paths: ClassVar[frozenset[str]] = frozenset({"protect", "official"})
    """Settings that say where something lies."""
    quick: ClassVar[dict[str, object]] = {"tune": False, "measure_mib": 1 / 64}
    """Settings for a first look, which shows what the vocabulary saves and not how good a model
    with it can be."""

    replace: Annotated[int, Field(ge=1)] | None = None
    """New tokens in the place of old ones; 10000 where neither this nor --expand is given."""
    expand: Annotated[int, Field(ge=1)] | None = None
    """New tokens beside all old ones: the model gets more rows, and other text loses nothing."""
    selector: Selector = "hierarchical"
    """hierarchical: merges that go on across words, by what each still saves. paper: as published.
    words: as published, within words (the paper's ablation)."""
    official: str | None = None
    """A patch_tokenizer.pkl of the authors' code, whose tokens are taken instead of choosing; it is
    read by a reader that runs nothing."""
    longest: Annotated[int, Field(ge=2)] | None = None
    """Base tokens of a new one, at most. By default 3 for the paper's selection; ours tries 3, 4, 6
    and no limit on dev texts."""
    least_texts: Annotated[int, Field(ge=1)] = 2
    """Texts of the corpus that a new token occurs in, at least (selection `hierarchical`)."""
    encoding: Literal["auto", "native", "patch"] = "auto"
    """native: a plain tokenizer.json. patch: a layer over the base's tokenizer, in Python, that
    covers text with the fewest tokens. auto: native where it does exactly what it should."""
    protect: tuple[str, ...] = ()
    """Texts of other domains (as --data): tokens that they use are kept, and what is lost on them
    is measured. May be repeated."""
    init: Init = "exp"
    """How new rows are made of old ones: exp (paper), half (its code), mean, random."""
    calibrate: bool = True
    """Shift new rows of the head so that new tokens are as likely as they are frequent; the paper
    does not. Where the head is the embeddings' matrix, it is left out."""
    tied: Tied = "untie"
    """Where embeddings and head are one matrix: untie them, or keep one (symmetric)."""
    tune: bool = True
    """Tune the adapted model."""
    control: bool = True
    """Tune the base model on the same bytes of text, too: the fair rival, `tuned` in a trial."""
    tune_mib: Annotated[float, Field(gt=0)] = 64
    """MiB of the corpus to tune on, at most."""
    measure_mib: Annotated[float, Field(gt=0)] = 1
    """MiB of held-out text that bits per byte are measured on, at most."""
    corpus_mib: Annotated[float, Field(gt=0)] = 256
    """MiB of the corpus to read, at most: it is held in memory."""
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Share of the texts to decide on, and as much again to judge by; neither is trained on."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that tune together, each with --cpus and --gpus (Ray Train)."""

    @model_validator(mode="after")
    def _one_mode(self) -> AdaptivocabPreparation:
        if self.replace is not None and self.expand is not None:
            raise ValueError("give replace or expand, not both")
        if self.official is not None and (self.replace or self.expand):
            raise ValueError(
                "the authors' file says what is replaced: leave replace and expand out"
            )
        return self

    @property
    def num_tokens(self) -> int:
        """New tokens that are asked for."""
        return self.replace or self.expand or DEFAULT_TOKENS

    def forward_tokens(self, num_layers: int, context: int | None, corpus_bytes: int) -> int:
        """About how many tokens pass through the whole model, which is what takes the time.

        A token is taken for four bytes, and a step of tuning for three passes.
        """
        read = min(corpus_bytes, int(self.corpus_mib * (1 << 20)))
        tuned_on = min(read * (1 - 2 * self.held_out), self.tune_mib * (1 << 20)) * self.epochs
        measured = min(read * self.held_out, self.measure_mib * (1 << 20))
        num_models = (2 if self.control else 1) if self.tune else 0
        return round((3 * num_models * tuned_on + (2 + num_models) * measured) / 4)

    @property
    def tuning(self) -> Tuning:
        """The settings of tuning alone."""
        return Tuning(**{name: getattr(self, name) for name in Tuning.model_fields})

    def run(
        self,
        lm: LanguageModel,
        corpus: Iterable[str],
        out_dir: Path,
        *,
        source: str,
        on_stage: OnStage = lambda stage: None,
        resources: Resources | None = None,
    ) -> str:
        """Write the artifact and return its fingerprint; nothing half-made is left at `out_dir`.

        Checkpoints of tuning stay in a folder beside it until it is finished, so that the same
        command goes on where it was interrupted. Raises InputError where the tokenizer is of no
        kind that can be adapted, the corpus is too small, more tokens are to be replaced than there
        are, or `out_dir` is not empty.
        """
        require_new(out_dir)
        base = BaseVocabulary.of(lm.tokenizer)
        _require_fit(base, lm)
        making = Making(self, lm, base, resources or InProcess(), on_stage)
        making.read(corpus)
        work = out_dir.parent / f".{out_dir.name}.tuning"
        with beside(out_dir) as folder:
            fingerprint = making.write(folder, work, source)
            publish(folder, out_dir)
        shutil.rmtree(work, ignore_errors=True)
        return fingerprint


def _require_fit(base: BaseVocabulary, lm: LanguageModel) -> None:
    num_rows = lm.model.get_input_embeddings().weight.shape[0]
    used = max((i for i in base.tokens if i not in base.added), default=0)
    if used >= num_rows:
        raise InputError(
            f"its tokenizer has ids up to {used}, and the model has {num_rows} rows",
            field="model",
            mend="Give a model with the tokenizer that it was trained with",
        )
