"""The short forms that a spec may be written in, turned into the long ones.

Each function takes what YAML holds and gives what the field's model reads. What it does not know it
hands on, so that the model's own validation names the fault; where only the short form can be at
fault it raises ValueError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from typing import Any

from jobs.spec.yaml_reader import describe

ENGINE_SETTINGS = ("batch_size", "cache", "prefill_chunk")
_OF_TASKS = {
    "name", "path", "task", "include_path", "num_fewshot", "chat", "trust_remote_code", "limit",
    "sample_seed", "shards",
}  # fmt: skip
MAX_SEED, MAX_SEEDS = 2**63 - 1, 1_000_000

_SCORER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def read_model(value: Any) -> Any:
    """A path is short for `{path: …}`."""
    return {"path": value} if isinstance(value, str) else value


read_dataset = read_model


def default_name(path: str) -> str:
    """A dataset's name: the last part of its path without the suffixes of its format."""
    stem = re.sub(r"\.(jsonl|parquet|csv)(\.gz)?$", "", PurePosixPath(path.rstrip("/")).name)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:100] or "dataset"


def read_workers(value: Any) -> Any:
    """A number is short for `{count: …}`."""
    return {"count": value} if _is_whole(value) else value


def read_stop(value: Any) -> Any:
    """One text is short for a list of one."""
    return [value] if isinstance(value, str) else value


def read_seeds(value: Any) -> Any:
    """A count k is short for 0…k-1."""
    if _is_whole(value):
        if not 1 <= value <= MAX_SEEDS:
            raise ValueError(f"expected 1 to {MAX_SEEDS:,} seeds, got {value}")
        return range(value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a count or a list of whole numbers, got {describe(value)}")
    if not value:
        raise ValueError("the list is empty. Give at least one seed")
    for seed in value:
        if _is_whole(seed) and not 0 <= seed <= MAX_SEED:
            raise ValueError(f"expected seeds from 0 to {MAX_SEED}, got {seed}")
    _require_unique("seed", value)
    return value


def read_optimization(value: Any) -> Any:
    """`name` and `name: {setting: value}` are short for `{name: …, settings: …}`.

    The long form, which a spec that was written by a program has, is taken too.
    """
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("name"), str) and set(value) <= {"name", "settings"}:
        return value
    if len(value) != 1:
        names = ", ".join(map(str, value))
        raise ValueError(
            f"expected a name or one `name: {{setting: value}}`, got the keys {names}."
            " Indent the settings below the name"
        )
    ((name, settings),) = value.items()
    if settings is not None and not isinstance(settings, dict):
        raise ValueError(f"expected a mapping of settings for `{name}`, got {describe(settings)}")
    return {"name": name, "settings": settings or {}}


def check_scorer(value: str) -> str:
    """The scorer as written, or ValueError where it cannot be one; it need not exist."""
    if value.startswith("regex:"):
        try:
            re.compile(value.removeprefix("regex:"))
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
    elif not _SCORER.fullmatch(value) and not _FUNCTION.fullmatch(value):
        raise ValueError(
            f"expected a scorer's name, `regex:PATTERN` or `package.module:function`, got '{value}'"
        )
    return value


def expanded(path: str) -> str:
    """A place with `~` and `${VARIABLE}` as a shell has them; ValueError for one that is not set.

    They are expanded where a spec is read, so that every command means the same by them.
    """
    found = os.path.expandvars(path)
    left = re.search(r"\$\{\w+\}|\$[A-Za-z_]\w*", found)
    if left is not None:
        raise ValueError(f"`{left[0]}` is not set in this environment")
    return os.path.expanduser(found) if found.startswith("~") else found


def check_source(given: Collection[str], path: str, task: str | None) -> None:
    """ValueError unless a dataset has a path or a task, and only keys that belong to it."""
    if task is None:
        if not path:
            raise ValueError("needs a `path`, or the name of a `task`")
        wrong = sorted({"include_path", "num_fewshot", "trust_remote_code"} & set(given))
        if wrong:
            raise ValueError(f"`{wrong[0]}` belongs to a `task`, and this is a `path`")
        return
    if path:
        raise ValueError("`path` and `task` exclude each other. Keep one of them")
    wrong = sorted(set(given) - _OF_TASKS)
    if wrong:
        raise ValueError(f"a `task` brings its own `{wrong[0]}`. Leave it out")


def read_factors(value: Any) -> Any:
    """Factors with their levels written out: `{name: [{name: …, optimizations: …}, …]}`."""
    if not isinstance(value, dict):
        return value
    return {str(factor): _levels(str(factor), levels) for factor, levels in value.items()}


def _levels(factor: str, levels: Any) -> list[Any]:
    is_setting = factor in ENGINE_SETTINGS
    if isinstance(levels, dict) and not is_setting:
        read = [_mapped_level(factor, name, content) for name, content in levels.items()]
    elif isinstance(levels, list | tuple):
        make = _setting_level if is_setting else _listed_level
        read = [make(factor, level) for level in levels]
    else:
        kinds = "values" if is_setting else "levels, or a mapping of them"
        raise ValueError(f"`{factor}`: expected a list of {kinds}, got {describe(levels)}")
    if not read:
        raise ValueError(f"`{factor}`: there are no levels")
    names = [level["name"] if isinstance(level, dict) else level.name for level in read]
    _require_unique(f"`{factor}`: level", names)
    return read


def _setting_level(factor: str, value: Any) -> Any:
    if (isinstance(value, dict) and "name" in value) or hasattr(value, "model_fields_set"):
        return value
    if factor == "prefill_chunk" and (value in (None, "none", "off", "whole") or value is False):
        return {"name": "whole", "prefill_chunk": None}
    wanted = "text" if factor == "cache" else "a whole number"
    if not (isinstance(value, str) if factor == "cache" else _is_whole(value)):
        raise ValueError(f"`{factor}`: expected {wanted} as a level, got {describe(value)}")
    return {"name": str(value), factor: value}


def _listed_level(factor: str, level: Any) -> Any:
    if (isinstance(level, dict) and "name" in level) or hasattr(level, "model_fields_set"):
        return level
    if isinstance(level, dict | list | float):
        raise ValueError(
            f"`{factor}`: expected a level's name, got {describe(level)}."
            " Levels with settings are a mapping: `level: {optimizations: […]}`"
        )
    name = _level_name(level)
    if name == "off":
        return {"name": "off"}
    return {"name": name, "optimizations": [factor if name == "on" else name]}


def _mapped_level(factor: str, level: Any, content: Any) -> Any:
    if content is None:
        return _listed_level(factor, level)
    if not isinstance(content, dict):
        raise ValueError(
            f"`{factor}`: expected a mapping for the level `{_level_name(level)}`,"
            f" got {describe(content)}"
        )
    return {**content, "name": _level_name(level)}


def _level_name(level: Any) -> str:
    """YAML reads `on`, `off`, `yes` and `no` as truth values."""
    if level is None or level is False or level in ("off", "none"):
        return "off"
    return "on" if level is True else str(level)


def _require_unique(what: str, values: Iterable[Any]) -> None:
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise ValueError(f"{what} {value} stands twice")
        seen.append(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
