"""From an artifact and a sparsity to a `LanguageModel` that skips weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optim.errors import InputError
from optim.larosa.allocation import Shares
from optim.larosa.artifact import Artifact, Level
from optim.larosa.sparse.break_even import RowRule
from optim.larosa.sparse.builder import Builder, Selection, Weights
from optim.model import LanguageModel

Selections = list[dict[str, Selection]]


def sparse_model(
    lm: LanguageModel,
    artifact: Artifact,
    selections: Selections,
    *,
    rule: RowRule,
    sparsify_prefill: bool = False,
    row_major: bool = False,
) -> LanguageModel:
    """The model with the artifact's weights and these selections; the one given stays as it is.

    `selections` say what is kept, per layer and site.
    """
    manifest = artifact.manifest
    built = Builder(
        lm.model,
        Weights(
            artifact.read,
            artifact.names,
            lm.model.get_output_embeddings().weight,
            artifact.fingerprint,
        ),
        folds=manifest.folds,
        adapted=frozenset(manifest.adapted),
        selections=selections,
        max_rows=rule,
        row_major=row_major,
        sparsify_prefill=sparsify_prefill,
    ).build()
    return replace(lm, model=built.model, phase=built.phase.of, meter=built.meter)


def selections(
    artifact: Artifact, shares: Shares, thresholds: list[dict[str, float]] | None = None
) -> Selections:
    """Numbers of channels to keep (shares are rounded to whole ones), or thresholds."""
    found = []
    for index, layer in enumerate(shares):
        own = {}
        for site, share in layer.items():
            if thresholds is not None:
                own[site] = Selection(share, threshold=thresholds[index][site])
            else:
                own[site] = Selection(share, k=round((1 - share) * artifact.width(index, site)))
        found.append(own)
    return found


def at_sparsity(
    levels: Sequence[Level], sparsity: float
) -> tuple[Shares, list[dict[str, float]] | None]:
    """Shares (and thresholds) at any sparsity, on straight lines between those that were prepared.

    Below the first level towards nothing dropped; above the last one towards all (shares only).
    Raises InputError above the last level where there are thresholds.
    """
    above = next((level for level in levels if level.sparsity >= sparsity - 1e-9), None)
    below = next((level for level in reversed(levels) if level.sparsity <= sparsity + 1e-9), None)
    if above is None and levels[0].thresholds is not None:
        raise InputError(
            f"the artifact has thresholds up to a sparsity of {levels[-1].sparsity:g}, not "
            f"{sparsity:g}",
            field="optimizations.larosa.sparsity",
            mend=f"Prepare it with --levels {sparsity:g}",
        )
    low = 0.0 if below is None else below.sparsity
    high = 1.0 if above is None else above.sparsity
    share = 0.0 if high - low < 1e-9 else (sparsity - low) / (high - low)
    shares = _between(
        None if below is None else below.sites, None if above is None else above.sites, share
    )
    if levels[0].thresholds is None:
        return shares, None
    assert above is not None
    return shares, _between(None if below is None else below.thresholds, above.thresholds, share)


def _between(
    low: list[dict[str, float]] | None, high: list[dict[str, float]] | None, share: float
) -> list[dict[str, float]]:
    pattern = low or high
    assert pattern is not None
    return [
        {
            site: (1 - share) * (low[index][site] if low else 0.0)
            + share * (high[index][site] if high else 1.0)
            for site in layer
        }
        for index, layer in enumerate(pattern)
    ]
