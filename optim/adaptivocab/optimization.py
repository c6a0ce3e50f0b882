"""`adaptivocab` and its control `tuned`, as settings that can be applied to a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from transformers import PreTrainedModel

import optim.adaptivocab.patched  # noqa: F401  Registers the tokenizer of artifacts with patches.
from optim.adaptivocab.artifact import Artifact, read_manifest
from optim.adaptivocab.preparation import AdaptivocabPreparation
from optim.errors import InputError
from optim.model import LanguageModel, fingerprint, load

if TYPE_CHECKING:
    from optim.names import Stage
    from optim.optimization import Preparation


class _FromArtifact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    artifact: Annotated[str, Field(min_length=1)]
    """The folder that `optrial prepare adaptivocab` wrote."""

    @field_validator("artifact")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return str(Path(value).expanduser().absolute())

    def content(self) -> str:
        """Fingerprint of the artifact; InputError where there is none."""
        return read_manifest(Path(self.artifact))[1]

    def notes(self) -> list[str]:
        """What the artifact says of how it was made."""
        return read_manifest(Path(self.artifact))[0].notes

    def _opened(self, lm: LanguageModel, name: str) -> Artifact:
        artifact = Artifact.open(self.artifact)
        if artifact.manifest.base != lm.identity():
            raise InputError(
                f"was made from another model ({artifact.manifest.base[:12]}…, this one is "
                f"{lm.identity()[:12]}…)",
                source=self.artifact,
                field=f"optimizations.{name}.artifact",
                mend="Prepare one for this model: optrial prepare adaptivocab --model MODEL "
                "--data DATA --out OUT",
            )
        return artifact


class Adaptivocab(_FromArtifact):
    """A domain's own vocabulary: the same text in fewer tokens, in and out.

    Approximate: it changes how text is cut, and the model is tuned to it. Compare it with `tuned`,
    the same model tuned on the same text, so that the vocabulary is not taken for the tuning.
    """

    name: ClassVar[str] = "adaptivocab"
    stage: ClassVar[Stage] = "vocabulary"
    preparation: ClassVar[type[Preparation] | None] = AdaptivocabPreparation
    places: ClassVar[frozenset[str]] = frozenset({"artifact"})

    def apply(self, lm: LanguageModel) -> LanguageModel:
        """The adapted model, which shares the parameters that tuning left alone with `lm`.

        Raises InputError where the artifact is of another model, or not as it was written.
        """
        artifact = self._opened(lm, self.name)
        made = _loaded(artifact.folder, lm)
        num_rows = made.model.get_output_embeddings().weight.shape[0]
        off_domain = artifact.manifest.off_domain
        return replace(
            made,
            vocabulary=artifact.tokens.vocabulary(num_rows),
            facts={
                "num_new_tokens": artifact.manifest.num_new,
                "domain_saving": artifact.manifest.held_out.saving,
                "off_domain_inflation": None if off_domain is None else -off_domain.saving,
            },
        )


class Tuned(_FromArtifact):
    """The control of `adaptivocab`: the base's own vocabulary, tuned on the same bytes of text.

    What an artifact of `adaptivocab` holds beside the adapted model. What a trial finds between the
    two is what the vocabulary does.
    """

    name: ClassVar[str] = "tuned"
    stage: ClassVar[Stage] = "vocabulary"
    keeps_vocabulary: ClassVar[bool] = True
    preparation: ClassVar[type[Preparation] | None] = None
    places: ClassVar[frozenset[str]] = frozenset({"artifact"})

    def apply(self, lm: LanguageModel) -> LanguageModel:
        """The tuned model, which shares the parameters that tuning left alone with `lm`.

        Raises InputError where the artifact is of another model, or holds no control.
        """
        return _loaded(self._opened(lm, self.name).control, lm)


def _loaded(folder: Path, lm: LanguageModel) -> LanguageModel:
    """The model of a folder in the dtype and on the device of another, sharing what is equal."""
    dtype = str(lm.model.dtype).removeprefix("torch.")
    made = load(
        str(folder), dtype=dtype, device=str(lm.device), fingerprint=fingerprint(str(folder))
    )
    made.model.set_attn_implementation(lm.model.config._attn_implementation)
    _share(made.model, lm.model)
    return made


def _share(model: PreTrainedModel, base: PreTrainedModel) -> None:
    """Let parameters that are equal bit by bit be those of `base`."""
    theirs = dict(base.named_parameters())
    for path, module in model.named_modules():
        for name, own in module._parameters.items():
            other = theirs.get(f"{path}.{name}" if path else name)
            if own is not None and other is not None and _is_equal(own, other):
                module._parameters[name] = other


def _is_equal(own: torch.Tensor, other: torch.Tensor) -> bool:
    same_kind = own.shape == other.shape and own.dtype == other.dtype
    return same_kind and own.device == other.device and torch.equal(own, other)
