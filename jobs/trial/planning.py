"""From a spec to a plan: prompts read, names resolved, everything that decides outputs hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.plan import (
    SCHEMA_VERSION,
    Configuration,
    Dataset,
    Generation,
    ModelSource,
    OptimizationSettings,
    Plan,
    WeightOrder,
    WorkerResources,
    best_order,
    decisive_dataset,
    decisive_generation,
    digest,
)
from jobs.data.prompts import PromptRow, load
from jobs.queries.row_faults import require_few_faults
from jobs.spec.analysis_plan import MIN_SHARDS
from jobs.spec.configurations import expand
from jobs.spec.generations import generation_of, require_one_vocabulary
from jobs.spec.score_names import plan_scores, require_judged
from jobs.spec.secret_check import require_no_secrets
from jobs.spec.shards import fewest_units, topped_up, with_shards
from jobs.spec.trial_spec import DatasetSpec, TrialSpec
from jobs.tasks.dataset import task_dataset
from optim.errors import InputError


def make_plan(spec: TrialSpec, spec_path: str | Path) -> tuple[Plan, list[dict[str, Any]]]:
    """The plan of a trial, and the rows of `inputs/prompts.parquet`.

    Local paths of the model and the output become absolute: workers have folders of their own.
    Raises InputError for everything that is wrong with the model, the datasets, the optimisations
    or the comparisons; errors of the spec itself name `spec_path`.
    """
    require_no_secrets(spec, spec_path)
    _require_unique_names(spec.datasets, spec_path)
    configurations = _configurations(spec, spec_path)
    model = _model(spec)
    generation = generation_of(spec.generation, model, spec_path)
    require_one_vocabulary([generation], configurations, spec_path)
    order = _weight_order(spec, configurations)
    # What can change last bits beside the configuration's own settings.
    around = {"share_prompts": spec.share_prompts, "weight_order": order}
    configurations = tuple(_fingerprinted(c, model, generation, around) for c in configurations)
    wanted = with_shards(spec.datasets, configurations, spec.analysis)
    datasets, rows = _datasets(spec.model_copy(update={"datasets": wanted}), model)
    needed = fewest_units(configurations, spec.analysis, look=2, num_sets=len(datasets))
    own = [d.generation for d in datasets if d.generation is not None]
    require_one_vocabulary(own, configurations, spec_path)
    datasets = topped_up(datasets, spec.datasets, needed)
    identity = {
        "code": _code_version(),
        "model": _model_identity(model),
        "configurations": [_without_places(c.model_dump(mode="json")) for c in configurations],
        "datasets": [d.identity() for d in datasets],
        "seeds": spec.seeds,
        "generation": generation.identity(),
        "likelihoods": spec.likelihoods,
        **around,
    }
    plan = Plan(
        run_id=digest(identity)[:12],
        output=_absolute(spec.output.removeprefix("file://")),
        model=model,
        configurations=configurations,
        datasets=datasets,
        seeds=spec.seeds,
        generation=generation,
        likelihoods=spec.likelihoods,
        share_prompts=spec.share_prompts,
        weight_order=order,
        workers=WorkerResources(**spec.workers.model_dump()),
        shuffle_seed=spec.shuffle_seed,
        analysis=spec.analysis.model_dump(mode="json"),
    )
    require_judged(spec.analysis, plan_scores(plan), spec_path)
    return plan, rows


def _weight_order(spec: TrialSpec, configurations: Sequence[Configuration]) -> WeightOrder:
    if spec.weight_order != "auto":
        return spec.weight_order
    is_cpu = spec.device == "cpu" or (spec.device == "auto" and not spec.workers.gpus)
    if not is_cpu or spec.dtype not in ("auto", "float32"):
        return "rows"
    return best_order(c.batch_size for c in configurations)


def _require_unique_names(datasets: Sequence[DatasetSpec], spec_path: str | Path) -> None:
    first: dict[str, int] = {}
    for index, dataset in enumerate(datasets):
        if dataset.name in first:
            raise InputError(
                f"datasets[{first[dataset.name]}] is named `{dataset.name}`, too",
                source=spec_path,
                field=f"datasets[{index}].name",
                mend="Give each dataset a `name` of its own",
            )
        first[dataset.name] = index


def _configurations(spec: TrialSpec, spec_path: str | Path) -> tuple[Configuration, ...]:
    from optim.cache.slot_cache import cache_factory
    from optim.registry import optimization

    try:
        configurations = expand(spec)
        for configuration in configurations:
            cache_factory(configuration.cache)
            for made in (optimization(o.name, o.settings) for o in configuration.optimizations):
                if made.stage == "cache" and configuration.cache != "dynamic":
                    raise InputError(
                        f"`{configuration.name}` has `cache: {configuration.cache}`, and "
                        f"{made.name} brings a cache of its own",
                        field="configurations" if spec.configurations else "factors",
                        mend="Leave `cache` out there, and compare with `vs`",
                    )
    except InputError as error:
        if error.source is not None:
            raise
        raise InputError(
            error.problem, source=spec_path, field=error.field, mend=error.mend
        ) from error
    return tuple(_with_artifacts(configuration) for configuration in configurations)


def _with_artifacts(configuration: Configuration) -> Configuration:
    """Settings with absolute places, and the fingerprints of what lies there."""
    from optim.registry import optimization

    found = []
    for chosen in configuration.optimizations:
        made = optimization(chosen.name, chosen.settings)
        settings = made.model_dump(mode="json", exclude_unset=True)  # type: ignore[attr-defined]
        found.append(
            OptimizationSettings(name=chosen.name, settings=settings, fingerprint=made.content())
        )
    return configuration.model_copy(update={"optimizations": tuple(found)})


def _model(spec: TrialSpec) -> ModelSource:
    from optim.model import fingerprint

    path, revision = spec.model.path, spec.model.revision
    if path != "demo" and Path(path).expanduser().exists():
        path = _absolute(path)
    return ModelSource(
        path=path,
        revision=revision,
        dtype=spec.dtype,
        device=spec.device,
        trust_remote_code=spec.model.trust_remote_code,
        fingerprint=fingerprint(path, revision=revision),
    )


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _model_identity(model: ModelSource) -> dict[str, Any]:
    """What of the model decides outputs; the fingerprint stands for wherever it lies."""
    return model.model_dump(mode="json", exclude={"path", "revision"})


def _code_version() -> list[object]:
    try:
        package = version("optrial")
    except PackageNotFoundError:
        package = "unknown"
    return [SCHEMA_VERSION, package]


def _fingerprinted(
    configuration: Configuration,
    model: ModelSource,
    generation: Generation,
    around: Mapping[str, str],
) -> Configuration:
    # What it is compared with decides nothing that is generated. Its name does: rows carry it.
    own = configuration.model_dump(
        mode="json", exclude={"vs", "duplicate_of", "levels", "fingerprint"}
    )
    own = _without_places(own)
    identity = {
        "code": _code_version(),
        "model": _model_identity(model),
        "configuration": own,
        "generation": generation.identity(),
        **around,
    }
    return configuration.model_copy(update={"fingerprint": digest(identity)})


def _without_places(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the places that its artifacts' fingerprints stand for."""
    from optim.registry import optimization

    kept = []
    for chosen in configuration["optimizations"]:
        places = optimization(chosen["name"], chosen["settings"]).places
        own = {key: value for key, value in chosen["settings"].items() if key not in places}
        kept.append({**chosen, "settings": own})
    return {**configuration, "optimizations": kept}


def _datasets(
    spec: TrialSpec, model: ModelSource
) -> tuple[tuple[Dataset, ...], list[dict[str, Any]]]:
    from optim.model import load_tokenizer

    tokenizer = cache(
        partial(
            load_tokenizer,
            model.path,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
    )
    datasets: list[Dataset] = []
    rows: list[dict[str, Any]] = []
    for wanted in spec.datasets:
        if wanted.task is not None:
            made, own = task_dataset(wanted, spec, model, len(rows))
            require_few_faults(own, wanted.name, wanted.task, spec.max_row_errors)
            datasets.append(made)
            rows.extend(row.as_dict() for row in own)
            continue
        own = load(wanted, tokenizer)
        require_few_faults(own, wanted.name, wanted.path, spec.max_row_errors)
        datasets.append(
            Dataset(
                name=wanted.name,
                num_prompts=len(own),
                first_row=len(rows),
                num_shards=min(wanted.shards or MIN_SHARDS, len(own)),
                fingerprint=dataset_fingerprint(own),
                scorers=wanted.scorers,
                has_targets=any(row.target is not None or row.choices for row in own),
            )
        )
        rows.extend(row.as_dict() for row in own)
    return tuple(datasets), rows


def dataset_fingerprint(rows: Sequence[PromptRow]) -> str:
    """Digest of all that is run of a dataset."""
    total = hashlib.sha256()
    for row in rows:
        # With the dataset's name: two datasets of equal rows must not share cells.
        total.update(digest(row.as_dict()).encode())
    return total.hexdigest()


_UNDECISIVE = {"run_id", "output", "workers", "shuffle_seed", "analysis", "looks"}
"""Keys of a plan that may differ between two runs of one trial."""
_ABSENT = object()


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What of a trial two plans (as JSON) disagree on, one line each, `old -> new`.

    Empty where they are the same trial, whatever their workers, output and order of work.
    """
    return difference_lines(decisive(old), decisive(new))


def difference_lines(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The same of two plans that are reduced to what counts (`decisive`)."""
    fingerprints, others = [], []
    for path, before, after in _differences("", old, new):
        if path.endswith(".fingerprint"):
            fingerprints.append(path.removesuffix(".fingerprint"))
        else:
            others.append(f"{path}: {_shown(before)} -> {_shown(after)}")
    for owner in fingerprints:
        if owner == "model":
            others.append("model: its files differ")
        elif owner.startswith("datasets"):
            others.append(f"{owner}: its prompts differ")
        elif ".optimizations[" in owner:
            others.append(f"{owner}: its artifact differs")
    if fingerprints and not others:
        others.append("the version of Optrial differs")
    return others


def decisive(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What of a plan (as JSON) identifies the trial; a fingerprint stands for the model's place."""
    kept = {key: value for key, value in plan.items() if key not in _UNDECISIVE}
    if not kept.get("seed_arms"):
        kept.pop("seed_arms", None)
    kept["model"] = {k: v for k, v in plan["model"].items() if k not in {"path", "revision"}}
    kept["generation"] = decisive_generation(plan["generation"])
    kept["datasets"] = [decisive_dataset(dataset) for dataset in plan["datasets"]]
    kept["configurations"] = [_without_places(c) for c in plan["configurations"]]
    return kept


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            place = f"{path}.{key}" if path else str(key)
            yield from _differences(place, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif _are_named(old) and _are_named(new):
        before, after = ({item["name"]: item for item in items} for items in (old, new))
        for name in dict.fromkeys([*before, *after]):
            yield from _differences(
                f"{path}[{name}]", before.get(name, _ABSENT), after.get(name, _ABSENT)
            )
        if before.keys() == after.keys() and list(before) != list(after):
            yield f"{path} (order)", list(before), list(after)
    elif old != new:
        yield path, old, new


def _are_named(items: Any) -> bool:
    return isinstance(items, list | tuple) and all(
        isinstance(item, Mapping) and "name" in item for item in items
    )


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = "present" if isinstance(value, Mapping) and "name" in value else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
