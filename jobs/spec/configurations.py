"""The configurations that a spec asks for: listed ones times factors, each with its comparison."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.plan import Configuration, OptimizationSettings
from jobs.spec.trial_spec import ConfigurationSpec, EngineSettings, LevelSpec, TrialSpec
from jobs.spec.yaml_reader import nearest
from optim.errors import InputError

REPEAT = ".repeat"
"""Ending of the name of a baseline's duplicate."""
MAX_NAME = 200
"""Characters of a configuration's name: it is part of a folder's name."""


@dataclass(frozen=True)
class _Arm:
    """A configuration before it is known what it is compared with."""

    name: str
    listed: ConfigurationSpec | None
    levels: dict[str, str]
    optimizations: tuple[OptimizationSettings, ...]
    engine: EngineSettings
    field: str
    """Where in the spec it comes from, for errors."""


def expand(spec: TrialSpec) -> tuple[Configuration, ...]:
    """The configurations in the spec's order, each duplicate right after its original.

    Fingerprints are empty. InputError names the field of the spec (its `source` is left open) where
    names collide, one setting is set twice, or a comparison has no partner.
    """
    arms = list(_arms(spec))
    _require_unique_names(arms, spec.baseline_check)
    baselines = _baselines(spec, arms)
    configurations = []
    for arm in arms:
        is_baseline = arm in baselines
        configuration = Configuration(
            name=arm.name,
            optimizations=arm.optimizations,
            levels=arm.levels,
            vs=_comparison(arm, arms, baselines),
            **arm.engine.model_dump(),
        )
        configurations.append(configuration)
        if is_baseline and spec.baseline_check:
            repeat = {"name": arm.name + REPEAT, "vs": arm.name, "duplicate_of": arm.name}
            configurations.append(configuration.model_copy(update=repeat))
    return tuple(configurations)


def _arms(spec: TrialSpec) -> Iterator[_Arm]:
    fields = {f"configurations[{index}]": each for index, each in enumerate(spec.configurations)}
    crossed: dict[str, ConfigurationSpec | None] = {
        field: each for field, each in fields.items() if not each.alone
    }
    if not crossed and (spec.factors or not fields):
        crossed = {"factors": None}
    for field, configuration in {**fields, **crossed}.items():
        is_alone = configuration is not None and configuration.alone
        for combination in [()] if is_alone else itertools.product(*spec.factors.values()):
            levels = dict(zip(() if is_alone else spec.factors, combination, strict=True))
            parts = [f"{factor}-{level.name}" for factor, level in levels.items()]
            if configuration and (len(crossed) > 1 or not parts):
                parts.insert(0, configuration.name)
            sources: list[tuple[str, LevelSpec]] = [(f"factor `{k}`", v) for k, v in levels.items()]
            if configuration:
                sources.insert(0, (f"configuration `{configuration.name}`", configuration))
            yield _Arm(
                name=".".join(parts) or "baseline",
                listed=configuration,
                levels={factor: level.name for factor, level in levels.items()},
                optimizations=_optimizations(sources, field),
                engine=_engine(spec.engine, sources, field),
                field=field,
            )


def _optimizations(
    sources: Sequence[tuple[str, LevelSpec]], field: str
) -> tuple[OptimizationSettings, ...]:
    found: dict[str, tuple[str, OptimizationSettings]] = {}
    for source, level in sources:
        for optimization in level.optimizations:
            if optimization.name in found:
                first = found[optimization.name][0]
                who = f"{source} twice" if first == source else f"both {first} and {source}"
                raise InputError(
                    f"the optimisation `{optimization.name}` is applied by {who}",
                    field=field,
                    mend="Apply it once",
                )
            settings = OptimizationSettings(**optimization.model_dump())
            found[optimization.name] = (source, settings)
    return tuple(settings for _, settings in found.values())


def _engine(
    default: EngineSettings, sources: Sequence[tuple[str, LevelSpec]], field: str
) -> EngineSettings:
    settings: dict[str, Any] = {}
    setters: dict[str, str] = {}
    for source, level in sources:
        for key, value in level.engine().items():
            if key in setters:
                raise InputError(
                    f"`{key}` is set by both {setters[key]} and {source}",
                    field=field,
                    mend="Set it in one place",
                )
            setters[key], settings[key] = source, value
    return EngineSettings(**{**default.model_dump(), **settings})


def _require_unique_names(arms: Sequence[_Arm], with_repeats: bool) -> None:
    counts = Counter(arm.name for arm in arms)
    for arm in arms:
        if counts[arm.name] > 1:
            raise InputError(
                f"two configurations are named `{arm.name}`",
                field=arm.field,
                mend="Give each its own name",
            )
        if with_repeats and arm.name + REPEAT in counts:
            raise InputError(
                f"the name `{arm.name}{REPEAT}` is kept for the duplicate of `{arm.name}`",
                field=arm.field,
                mend="Choose another name, or set `baseline_check: false`",
            )
        if len(arm.name) > MAX_NAME:
            raise InputError(
                f"the name `{arm.name}` is longer than {MAX_NAME} characters",
                field=arm.field,
                mend="Shorten the names of factors and levels",
            )


def _baselines(spec: TrialSpec, arms: Sequence[_Arm]) -> list[_Arm]:
    plain = [arm for arm in arms if not arm.optimizations]
    if spec.baseline is None:
        if plain:
            return plain
        raise InputError(
            "every configuration has optimisations, so there is no baseline",
            field="configurations" if spec.configurations else "factors",
            mend="Add `- name: baseline` to `configurations` or the level `off` to each factor,"
            " or name one of the configurations in `baseline`",
        )
    named = [arm for arm in arms if spec.baseline in _aliases(arm)]
    if not named:
        raise InputError(
            f"there is no configuration `{spec.baseline}`",
            field="baseline",
            mend=_known(spec.baseline, arms),
        )
    fewest = min(len(arm.optimizations) for arm in named)
    return [arm for arm in named if len(arm.optimizations) == fewest]


def _aliases(arm: _Arm) -> set[str]:
    """What `baseline` may call an arm: its name, its listed name, any of its levels."""
    listed = {arm.listed.name} if arm.listed else set()
    return {arm.name, *listed, *(f"{factor}-{level}" for factor, level in arm.levels.items())}


def _comparison(arm: _Arm, arms: Sequence[_Arm], baselines: Sequence[_Arm]) -> str | None:
    """The name of the configuration that this one is compared with."""
    wanted = arm.listed.vs if arm.listed else None
    if wanted is not None:
        return _named_comparison(arm, wanted, arms)
    if arm in baselines:
        return None

    def likeness(baseline: _Arm) -> tuple[bool, bool, bool, bool]:
        # Without a baseline at the same settings the nearest one serves: a different batch size
        # would change more than a different cache does.
        mine, its = arm.engine, baseline.engine
        same = [
            mine.batch_size == its.batch_size,
            mine.prefill_chunk == its.prefill_chunk,
            mine.cache == its.cache,
        ]
        return all(same), same[0], same[1], same[2]

    return max(baselines, key=likeness).name


def _named_comparison(arm: _Arm, wanted: str, arms: Sequence[_Arm]) -> str:
    """`vs` names a configuration, or a listed one: then the one at the same levels."""
    partner = next((other for other in arms if other.name == wanted), None) or next(
        (o for o in arms if o.listed and o.listed.name == wanted and o.levels == arm.levels), None
    )
    if partner is None:
        raise InputError(
            f"there is no configuration `{wanted}` to compare `{arm.name}` with",
            field=f"{arm.field}.vs",
            mend=_known(wanted, arms),
        )
    if partner is arm:
        raise InputError(
            f"`{arm.name}` is compared with itself",
            field=f"{arm.field}.vs",
            mend="Name another configuration, or leave `vs` out",
        )
    return partner.name


def _known(name: str, arms: Sequence[_Arm]) -> str:
    names = [arm.name for arm in arms]
    close = nearest(name, names)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"Did you mean `{close}`?" if close else f"There are: {shown}"
