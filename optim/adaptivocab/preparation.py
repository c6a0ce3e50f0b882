"""`optrial prepare adaptivocab`: from a model and domain text to an adapted model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from optim.adaptivocab.artifact_builder import Making
from optim.adaptivocab.settings import AdaptivocabSettings
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.artifact_files import beside, publish, require_new
from optim.errors import InputError
from optim.model import LanguageModel
from optim.resources import InProcess, Resources

OnStage = Callable[[str], None]


class AdaptivocabPreparation(AdaptivocabSettings):
    """How an adapted model is made. The corpus is text of the domain, and tunes the model too."""

    name: ClassVar[str] = "adaptivocab"
    paths: ClassVar[frozenset[str]] = frozenset({"protect", "official"})
    """Settings that say where something lies."""
    quick: ClassVar[dict[str, object]] = {"tune": False, "measure_mib": 1 / 64}
    """Settings for a first look."""
    quick_costs: ClassVar[str] = (
        "no model is tuned, so it shows what the vocabulary saves and not how good a model can be"
    )

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
