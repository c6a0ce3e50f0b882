"""Offline artifacts, as one Ray task each: `optrial prepare NAME --model … --data … --out DIR`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from rich.text import Text

from cluster.plan import ModelSource
from jobs.corpus import Reading, read_corpora
from optim.errors import InputError
from optim.registry import Preparation, preparations

OnStage = Callable[[str], None]
CLEAN_UP_S = 60.0
"""The most that an interrupted task is waited for."""


def prepare(
    name: str,
    settings: dict[str, Any],
    *,
    model: ModelSource,
    data: Sequence[str],
    reading: Reading,
    out: str,
    cpus: int = 1,
    gpus: int = 0,
    address: str | None = None,
    on_stage: OnStage = lambda stage: None,
) -> str:
    """Make an artifact in a Ray task with that many CPUs and GPUs; returns its fingerprint.

    `out` is a folder of the machine that the task runs on. Raises InputError for what a person can
    mend: settings, model, data, a cluster that is too small, a folder that is not empty.
    """
    import ray
    from ray.exceptions import RayTaskError

    from jobs.ray_session import ray_session, terminated_as_interrupted

    checked(name, settings)
    folder = str(Path(out).expanduser().absolute())
    with ray_session(address, on_stage), terminated_as_interrupted():
        _require([node["Resources"] for node in ray.nodes() if node["Alive"]], cpus, gpus)  # type: ignore[no-untyped-call]
        task = ray.remote(_stages).options(num_cpus=cpus, num_gpus=gpus, num_returns="streaming")
        work: Any = task.remote(
            name, settings, model.model_dump(), list(data), reading, folder, cpus, gpus
        )
        try:
            return _follow(work, on_stage)
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            raise
        except KeyboardInterrupt:
            if not _cancel(work):
                on_stage(f"the task did not end in time: it may leave a folder .{out}.… behind")
            raise


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


def _require(nodes: list[dict[str, float]], cpus: int, gpus: int) -> None:
    """One node has to have it all: such a request would else wait forever."""
    for resource, wanted, least in (("CPU", cpus, 1), ("GPU", gpus, 0)):
        if wanted < least:
            raise InputError(
                f"must be {least} or more, got {wanted}", field=f"--{resource.lower()}s"
            )
        most = max((node.get(resource, 0) for node in nodes), default=0)
        if wanted > most:
            raise InputError(
                f"{wanted} {resource}s are asked for, and the largest node has {most:g}",
                field=f"--{resource.lower()}s",
                mend="Ask for fewer, or start a larger node",
            )


def _stages(
    name: str,
    settings: dict[str, Any],
    model: dict[str, Any],
    data: list[str],
    reading: Reading,
    out: str,
    cpus: int,
    gpus: int,
) -> Iterator[tuple[str, str]]:
    """The task: yields what it is at, and at last the fingerprint."""
    import torch

    # Ray leaves every GPU visible to a task that asked for none.
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(cpus)
    queue: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    stopped = Event()

    def on_stage(text: str) -> None:
        if stopped.is_set():
            raise InterruptedError
        queue.put(("stage", text))

    def work() -> None:
        try:
            queue.put(("done", _prepare(name, settings, model, data, reading, out, on_stage)))
        except BaseException as error:  # It is raised again by the thread that waits.
            queue.put(("error", error))

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = queue.get()
            if kind == "error":
                raise value
            yield kind, value
            if kind == "done":
                return
    finally:
        # Cancelled, it ends at its next stage and removes what it has written.
        stopped.set()
        thread.join(CLEAN_UP_S)


def _prepare(
    name: str,
    settings: dict[str, Any],
    model: dict[str, Any],
    data: list[str],
    reading: Reading,
    out: str,
    on_stage: OnStage,
) -> str:
    from optim.model import fingerprint, load

    texts = read_corpora(data, reading)
    first = list(islice(texts, len(data)))  # What cannot be read is found out at once.
    source = ModelSource.model_validate(model)
    on_stage(f"loading the model ({source.path})")
    lm = load(
        source.path,
        revision=source.revision,
        dtype=source.dtype,
        device=source.device,
        trust_remote_code=source.trust_remote_code,
        fingerprint=fingerprint(source.path, revision=source.revision),
    )
    return checked(name, settings).run(
        lm, chain(first, texts), Path(out), source=", ".join(data), on_stage=on_stage
    )


# --- the commands ------------------------------------------------------------------------------


def command(name: str, kind: type[Preparation]) -> Callable[..., None]:
    """The command that prepares one optimisation: common options, then one for each setting."""

    def run(
        *,
        model: str,
        data: list[str],
        out: str,
        column: str | None,
        subset: str | None,
        split: str | None,
        revision: str | None,
        dtype: str,
        device: str,
        trust_remote_code: bool,
        cpus: int,
        gpus: int,
        address: str | None,
        **settings: Any,
    ) -> None:
        from jobs.console import console

        screen = console()
        place = Path(model).expanduser()
        source = ModelSource(
            path=str(place.absolute()) if model != "demo" and place.exists() else model,
            revision=revision,
            dtype=dtype,  # type: ignore[arg-type]
            device=device,  # type: ignore[arg-type]
            trust_remote_code=trust_remote_code,
        )
        try:
            made = prepare(
                name,
                {key: value for key, value in settings.items() if value is not None},
                model=source,
                data=[_absolute(path) for path in data],
                reading=Reading(column, subset, split),
                out=out,
                cpus=cpus,
                gpus=gpus,
                address=address,
                on_stage=lambda text: screen.print(Text(f"· {text}", style="dim")),
            )
        except KeyboardInterrupt:
            screen.print("\nInterrupted. There is no artifact.")
            raise typer.Exit(130) from None
        screen.print(Text(f"{out} is ready ({made[:12]})."), soft_wrap=True)
        screen.print(Text(f"In a spec: optimizations: [{{{name}: {{artifact: {out}}}}}]"))

    own = _parameters(kind)
    run.__signature__ = inspect.Signature([*_common(), *own])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*_common(), *own)}
    run.__doc__ = inspect.cleandoc(kind.__doc__ or "")
    return run


def _absolute(path: str) -> str:
    place = Path(path).expanduser()
    return str(place.absolute()) if "://" not in path and place.exists() else path


def _common() -> list[inspect.Parameter]:
    from typing import Literal

    dtypes = Literal["auto", "float32", "bfloat16", "float16"]
    return [
        _option("model", str, ..., "A folder with safetensors, a hub id, or demo."),
        _option(
            "data",
            list[str],
            ...,
            "Texts: .txt, .jsonl, .csv, .parquet, a hub id, or demo/training. May be repeated.",
        ),
        _option("out", str, ..., "The new folder of the artifact."),
        _option("column", str | None, None, "The column of the texts, instead of text or prompt."),
        _option("subset", str | None, None, "Subset of a hub dataset."),
        _option("split", str | None, None, "Split of a hub dataset."),
        _option("revision", str | None, None, "Commit, tag or branch of a hub model."),
        _option("dtype", dtypes, "auto", "auto: float32 on CPU, the checkpoint's own on GPU."),
        _option("device", Literal["auto", "cpu", "cuda"], "auto", "auto: cuda with --gpus."),
        _option("trust_remote_code", bool, False, "Run Python code that the model brings along."),
        _option("cpus", int, 1, "CPUs, which are its threads."),
        _option("gpus", int, 0, "GPUs."),
        _option("address", str | None, None, "A running Ray cluster (else RAY_ADDRESS)."),
    ]


def _parameters(kind: type[Preparation]) -> list[inspect.Parameter]:
    """One option for each setting of a preparation."""
    assert issubclass(kind, BaseModel)
    return [
        _option(name, _plain(field.annotation), field.get_default(), field.description or "")
        for name, field in kind.model_fields.items()
    ]


def _plain(annotation: Any) -> Any:
    """A type that the command line can read: tuples are lists, constraints are left to pydantic."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return list[_plain(get_args(annotation)[0])]  # type: ignore[misc]
    return annotation


def _option(name: str, annotation: Any, default: Any, text: str) -> inspect.Parameter:
    default = list(default) if isinstance(default, tuple) else default
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is ... else default,
        annotation=Annotated[annotation, typer.Option(help=" ".join(text.split()))],
    )
