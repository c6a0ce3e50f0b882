"""Whether the engine gives a model's own outputs, shown before any of its weights are read.

A small random model of the same architecture (`optim.models.small_config`) goes through the engine
with each cache, alone and in ragged batches, with whole and chunked prompts, and must give the
logits of whole passes without a cache (`cluster.conformance.runs`). What was found is remembered
(`cluster.conformance.remembered`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import AutoConfig

from cluster.conformance.remembered import ALL_CASES, KNOWN_CACHES, Case, Verdict, recall, store
from cluster.conformance.runs import checked
from cluster.plan import Configuration, ModelSource
from optim.errors import InputError
from optim.model import model_errors, resolve
from optim.models.checkpoint import as_run, require_decoder
from optim.names import stage_of

_OTHER = "Give another architecture, as Llama, Qwen or Gemma are"


def cases_of(configurations: Iterable[Configuration]) -> list[Case]:
    """What configurations ask of the engine.

    A cache that is not known counts as the dynamic one: what it gives by itself is looked at with
    the loaded weights.
    """
    cases = []
    for each in configurations:
        brought = [o.name for o in each.optimizations if stage_of(o.name) == "cache"]
        cache = brought[-1] if brought else each.cache
        known = cache if cache in KNOWN_CACHES else "dynamic"
        cases.append(Case(known, each.batch_size > 1, each.prefill_chunk is not None))
    return list(dict.fromkeys(cases))


def require_source(source: ModelSource, configurations: Iterable[Configuration]) -> None:
    """InputError where the engine would not give the outputs of a plan's model."""
    folder = resolve(source.path, revision=source.revision)
    with model_errors(source.path):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=source.trust_remote_code)
        require_decoder(config, source.path)
    cases = cases_of(configurations)
    remote = source.trust_remote_code
    require_right(config, cases, source=source.path, trust_remote_code=remote)


def require_right(
    config: Any, cases: Iterable[Case], *, source: str | None, trust_remote_code: bool = False
) -> None:
    """InputError where one of these cases gives other outputs than whole passes without a cache."""
    verdict = verdict_of(config, trust_remote_code=trust_remote_code)
    if verdict.problem is not None:
        raise InputError(
            f"{verdict.architecture} cannot be checked, and so is not run: {verdict.problem}",
            source=source,
            field="model",
            mend=_OTHER,
        )
    for case in cases:
        if case.name in verdict.faults:
            raise InputError(
                f"{verdict.architecture} would not give its own texts here ({case.name}): "
                f"{verdict.faults[case.name]}",
                source=source,
                field="model",
                mend=_mend(case, verdict),
            )


def verdict_of(config: Any, *, trust_remote_code: bool = False) -> Verdict:
    """What the check finds, or found before. Models with code of their own are always checked."""
    config = as_run(config)
    is_foreign = trust_remote_code and bool(getattr(config, "auto_map", None))
    if not is_foreign and (found := recall(config)) is not None:
        return found
    verdict = checked(config, trust_remote_code=is_foreign)
    if not is_foreign:
        store(config, verdict)
    return verdict


def _mend(case: Case, verdict: Verdict) -> str:
    """What is nearest to the case and works."""
    right = [other for other in ALL_CASES if other.name not in verdict.faults]
    ways = sorted(((_changes(case, other), other) for other in right), key=lambda w: len(w[0]))
    for changes, _ in ways:
        return f"It works with {' and '.join(changes)}"
    return _OTHER


def _changes(case: Case, other: Case) -> list[str]:
    changes = []
    if other.is_batched != case.is_batched:
        changes.append("batch_size above 1" if other.is_batched else "batch_size: 1")
    if other.cache != case.cache:
        changes.append(f"the {other.cache} cache")
    if other.is_chunked != case.is_chunked:
        changes.append("a prefill_chunk" if other.is_chunked else "no prefill_chunk")
    return changes
