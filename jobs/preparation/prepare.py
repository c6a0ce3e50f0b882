"""Offline artifacts, as one Ray task each: `optrial prepare NAME --model … --data … --out DIR`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from cluster.plan import ModelSource
from cluster.worker.loaded_configuration import load_source
from jobs.data.texts import Reading, read_corpora
from jobs.preparation.ray_tasks import CLEAN_UP_S, stream
from jobs.spec.secret_check import require_none_secret
from optim.errors import InputError
from optim.optimization import Preparation
from optim.registry import preparations

if TYPE_CHECKING:
    from ray.exceptions import RayError

OnStage = Callable[[str], None]


class Task(NamedTuple):
    """What is to be prepared, from what, where, and with how much of a node."""

    name: str
    """Of the optimisation."""
    settings: dict[str, Any]
    """Of its preparation."""
    model: ModelSource
    data: list[str]
    reading: Reading
    out: str
    """The new folder, on the machine that the task runs on."""
    cpus: int = 1
    gpus: int = 0


def recipe(task: Task) -> dict[str, Any]:
    """What decides what a task makes; the text by where it comes from."""
    from optim.model import fingerprint

    made: Any = checked(task.name, task.settings)
    _require_no_secrets(task)
    return {
        "preparation": task.name,
        "optrial": version("optrial"),
        "settings": made.model_dump(mode="json"),
        "model": fingerprint(task.model.path, revision=task.model.revision),
        "dtype": task.model.dtype,
        "device": task.model.device,
        "data": task.data,
        "reading": task.reading._asdict(),
    }


def prepare(
    task: Task, *, address: str | None = None, on_stage: OnStage = lambda stage: None
) -> str:
    """Make an artifact in a Ray task; returns its fingerprint.

    Raises InputError for what a person can mend: settings, model, data, a cluster that is too
    small, a folder that is not empty.
    """
    import ray
    from ray.exceptions import RayError

    from cluster.ray_session import ray_session, terminated_as_interrupted

    checked(task.name, task.settings)
    _require_no_secrets(task)
    task = task._replace(out=str(Path(task.out).expanduser().absolute()))
    with ray_session(address, on_stage), terminated_as_interrupted():
        nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
        _require([node["Resources"] for node in nodes if node["Alive"]], task)
        stages = ray.remote(_stages).options(
            num_cpus=task.cpus, num_gpus=task.gpus, num_returns="streaming",
            # Ray repeats without end what it ends for its memory.
            max_retries=0,
        )  # fmt: skip
        work: Any = stages.remote(task)
        try:
            return _follow(work, on_stage)
        except RayError as error:
            raise _clear(error, task) from error
        except KeyboardInterrupt:
            if not _cancel(work):
                on_stage(f"the task did not end in time: it may leave a folder beside {task.out}")
            raise


def _clear(error: RayError, task: Task) -> Exception:
    """What ended a task, as a sentence where a person can mend it."""
    from ray.exceptions import RayTaskError

    from cluster.scheduling.failures import classify

    failure = classify(error)
    if isinstance(failure.cause, InputError):
        return failure.cause
    if isinstance(error, RayTaskError) and failure.kind != "out_of_memory":
        return error
    is_memory = failure.kind == "out_of_memory"
    more = "Give it a machine with more memory, a smaller dtype or less --data, and run it again"
    return InputError(
        f"there is no artifact, for the work did not go on: {failure.reason}",
        source=task.out,
        mend=more if is_memory else "Run it again; a folder .… beside it may be left, to remove",
    )


def _require_no_secrets(task: Task) -> None:
    """Artifacts say what they were made of."""
    given = {"--model": task.model.path, "--data": task.data, "--out": task.out}
    require_none_secret(given | task.settings, "the command line")


def _follow(work: Any, on_stage: OnStage) -> str:
    """Report the stages of a task as they come; returns what it came to."""
    import ray

    last = ""
    for reference in work:
        kind, text = ray.get(reference)
        if kind == "stage":
            on_stage(text)
        else:
            last = text
    return last


def _cancel(work: Any) -> bool:
    """Stop a task, and wait until it has removed what it had written so far; whether it has."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    ray.cancel(work)
    try:
        for reference in work:
            ray.get(reference, timeout=CLEAN_UP_S)
    except GetTimeoutError:
        return False
    except RayError:
        return True
    return True


def checked(name: str, settings: dict[str, Any]) -> Preparation:
    """A preparation with these settings; InputError for the first that is wrong."""
    kind: Any = preparations()[name]
    try:
        made: Preparation = kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else None
        raise InputError(
            f"{first['msg']}, got {first['input']!r}",
            field=field and f"--{field.replace('_', '-')}",
            mend=f"See optrial prepare {name} --help",
        ) from error
    return made


def _require(nodes: list[dict[str, float]], task: Task) -> None:
    """One node has to have it all: such a request would else wait forever."""
    from cluster.scheduling.preflight import limit_text

    for resource, wanted, least in (("CPU", task.cpus, 1), ("GPU", task.gpus, 0)):
        if wanted < least:
            raise InputError(
                f"must be {least} or more, got {wanted}", field=f"--{resource.lower()}s"
            )
        most = max((node.get(resource, 0) for node in nodes), default=0)
        if wanted > most:
            raise InputError(
                f"{wanted} {resource}s are asked for, and the largest node has {most:g}"
                f"{limit_text() if resource == 'CPU' else ''}",
                field=f"--{resource.lower()}s",
                mend="Ask for fewer, or start a larger node",
            )


def _stages(task: Task) -> Iterator[tuple[str, str]]:
    """The task: yields what it is at, and at last the fingerprint."""
    # Ray leaves every GPU visible to a task that asked for none.
    if not task.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    yield from stream(partial(_prepare, task), task.cpus)


def _prepare(task: Task, on_stage: OnStage) -> str:
    from jobs.preparation.ray_tasks import RayResources
    from optim.model import fingerprint

    texts = read_corpora(task.data, task.reading)
    first = list(islice(texts, len(task.data)))  # What cannot be read is found out at once.
    on_stage(f"loading the model ({task.model.path})")
    known = fingerprint(task.model.path, revision=task.model.revision)
    lm = load_source(task.model.model_copy(update={"fingerprint": known}))
    return checked(task.name, task.settings).run(
        lm,
        chain(first, texts),
        Path(task.out),
        source=", ".join(task.data),
        on_stage=on_stage,
        resources=RayResources(task.reading, task.cpus, task.gpus),
    )
