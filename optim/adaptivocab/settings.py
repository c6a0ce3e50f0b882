"""Settings of a preparation: what is new in the vocabulary, and how the models are made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from optim.adaptivocab.selection.vocabulary_builder import Selector
from optim.adaptivocab.training.embeddings import Init, Tied
from optim.adaptivocab.training.tuning_settings import Tuning

DEFAULT_TOKENS = 10_000


class AdaptivocabSettings(Tuning):
    """How an adapted model is made."""

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
    def _one_mode(self) -> AdaptivocabSettings:
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
