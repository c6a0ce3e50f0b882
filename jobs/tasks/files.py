"""Where lm-eval's tasks lie: the folder that a spec names, then lm-eval's own; and what is refused.

Finding a task executes nothing. Loading one runs the Python functions that its file names.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jobs.spec.yaml_reader import nearest
from optim.errors import InputError
from optim.proxies import hub_address, proxy_words

_TASKS = {"TASK", "PY_TASK"}
_TRUST = "Set `trust_remote_code: true` beside the task if it may run"
_DATA_MODULES = ("datasets", "huggingface_hub", "httpx", "requests")


def build(name: str, include_path: str | None, *, is_trusted: bool) -> Any:
    """The task of a name, a `lm_eval.api.task.Task`; `is_trusted` as in `hub_code`.

    Raises InputError where there is none, where it is a group, where its data cannot be had, and
    where it needs what is not supported.
    """
    from lm_eval.tasks import TaskManager

    own = None if include_path is None else str(_folder(include_path))
    manager = TaskManager(include_path=own, include_defaults=False)
    entry = manager.task_index.get(name)
    spec: Any = name
    if entry is None:
        path = _stock_task(name)
        if path is None:
            raise _not_found(name, manager.all_subtasks, own)
        spec = str(path)
    elif entry.kind.name not in _TASKS:
        raise _is_group(name, entry, own)
    else:
        data = _local_data(entry)
        if data is not None:
            # The way to load a registered task with some keys of its own.
            spec = {"group": f"{name} alone", "task": [{"task": name, "dataset_kwargs": data}]}
    try:
        with hub_code(is_trusted=is_trusted):
            tasks = list(manager.load([spec])["tasks"].values())
    except InputError as error:
        raise InputError(error.problem, source=name, field="task", mend=error.mend) from error
    except Exception as error:  # Its functions, the hub, the network, Arrow: each its own kinds.
        raise unusable(name, "cannot be loaded", error) from error
    _require_supported(name, tasks[0])
    _require_metrics(name, tasks[0])
    return tasks[0]


def _require_supported(name: str, made: Any) -> None:
    if getattr(made, "UNSAFE_CODE", False):
        raise InputError(
            "it runs the code that a model writes, on this machine and unguarded",
            source=name,
            field="task",
            mend="Run it with lm-eval itself, in a sandbox",
        )
    if getattr(made, "MULTIMODAL", False):
        mend = "Choose one of text alone"
        raise InputError("it needs images or sound", source=name, field="task", mend=mend)


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(
            "there is no such folder",
            source=path,
            field="include_path",
            mend="Give the folder that holds the task's YAML file",
        )
    return folder.absolute()


def _stock_task(name: str) -> Path | None:
    """The file of one of lm-eval's own tasks; its index of all of them takes 14 s to make."""
    import lm_eval.tasks

    line = re.compile(rf"^task:[ \t]*[\"']?{re.escape(name)}[\"']?[ \t]*(#.*)?\r?$".encode(), re.M)
    for path in sorted(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")):
        if line.search(path.read_bytes()):
            from lm_eval.tasks import TaskManager

            found = TaskManager(include_path=str(path.parent), include_defaults=False)
            entry = found.task_index.get(name)
            if entry is not None and entry.kind.name in _TASKS:
                return Path(entry.yaml_path) if entry.yaml_path else path
    return None


@cache
def _stock_index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _not_found(name: str, own: Sequence[str], folder: str | None) -> InputError:
    manager = _stock_index()
    entry = manager.task_index.get(name)
    if entry is not None and entry.kind.name not in _TASKS:
        return _is_group(name, entry, folder)
    close = nearest(name, [*own, *manager.all_subtasks])
    where = "lm-eval has no such task" if folder is None else f"neither {folder} nor lm-eval has it"
    mend = f"Did you mean `{close}`?" if close else "Name the folder of your own in `include_path`"
    return InputError(where, source=name, field="task", mend=mend)


def _is_group(name: str, entry: Any, folder: str | None) -> InputError:
    listed = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task", [])
    names = [each if isinstance(each, str) else each.get("task", each.get("group")) for each in
             (listed if isinstance(listed, list) else [listed])]  # fmt: skip
    shown = ", ".join(map(str, names[:10])) + (", …" if len(names) > 10 else "")
    return InputError(
        "it is a group of tasks", source=name, field="task", mend=f"Give each a dataset: {shown}"
    )


@contextlib.contextmanager
def hub_code(*, is_trusted: bool) -> Iterator[None]:
    """Keeps tasks from fetching metrics of the hub, which are code, unless they are trusted to.

    They get an InputError then.
    """
    import evaluate

    load = evaluate.load

    def refused(path: str, *arguments: Any, **options: Any) -> Any:
        raise InputError(f"the metric `{path}` is code of the hub", field="task", mend=_TRUST)

    if not is_trusted:
        evaluate.load = refused
    try:
        yield
    finally:
        evaluate.load = load


def _require_metrics(name: str, made: Any) -> None:
    """InputError where a metric that completions need was not to be had."""
    if made.OUTPUT_TYPE != "generate_until" or callable(made.config.process_results):
        return
    for metric, function in getattr(made, "_metric_fn_list", {}).items():
        if function is None:
            raise InputError(
                f"lm-eval has no metric `{metric}` of its own: it would be code of the hub",
                source=name,
                field="task",
                mend=_TRUST,
            )


def _local_data(entry: Any) -> dict[str, Any] | None:
    """`dataset_kwargs` with data files beside the task's file found wherever one calls from."""
    kwargs = (entry.cfg or {}).get("dataset_kwargs")
    if not isinstance(kwargs, dict) or "data_files" not in kwargs or entry.yaml_path is None:
        return None
    folder = Path(entry.yaml_path).parent

    def found(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: found(each) for key, each in value.items()}
        if isinstance(value, list):
            return [found(each) for each in value]
        is_beside = isinstance(value, str) and (folder / value).exists()
        return str((folder / value).absolute()) if is_beside else value

    return {**kwargs, "data_files": found(kwargs["data_files"])}


def unusable(name: str, problem: str, error: Exception) -> InputError:
    """What to say of an error in a task's own code, or in whatever fetches its data."""
    text = " ".join(str(error).split()) or type(error).__name__
    is_data = isinstance(error, OSError) or type(error).__module__.startswith(_DATA_MODULES)
    return InputError(
        f"{'its data cannot be had' if is_data else problem}: {type(error).__name__}: {text[:400]}",
        source=name,
        field="task",
        mend="Data of the hub needs the network, once; for data of your own write a task with "
        f"`dataset_path: json`.{proxy_words(hub_address(), error)}".rstrip(".")
        if is_data
        else None,
    )
