"""The commands that prepare optimisations, an option for each of their settings."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from cluster.plan import ModelSource
from jobs.cli.options import console
from jobs.data.texts import Reading
from jobs.preparation.leftovers import leftover_text, leftovers
from jobs.preparation.prepare import Task, prepare, recipe
from jobs.preparation.recipes import is_made, write_recipe
from optim.optimization import Preparation


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
        reuse: bool,
        **settings: Any,
    ) -> None:
        screen = console()
        place = Path(model).expanduser()
        source = ModelSource(
            path=str(place.absolute()) if model != "demo" and place.exists() else model,
            revision=revision,
            dtype=dtype,  # type: ignore[arg-type]
            device=device,  # type: ignore[arg-type]
            trust_remote_code=trust_remote_code,
        )
        for setting in kind.paths & settings.keys():
            settings[setting] = _absolute_all(settings[setting])
        task = Task(
            name=name,
            settings={key: value for key, value in settings.items() if value is not None},
            model=source,
            data=[_absolute(path) for path in data],
            reading=Reading(column, subset, split),
            out=out,
            cpus=cpus,
            gpus=gpus,
        )
        made_by = recipe(task)
        if reuse and is_made(out, made_by):
            screen.print(Text(f"{out} is there already, made by the same recipe."), soft_wrap=True)
            return
        _say_leftovers(out, screen)
        try:
            made = prepare(
                task,
                address=address,
                on_stage=lambda text: screen.print(Text(f"· {text}", style="dim")),
            )
            write_recipe(out, made_by)
        except KeyboardInterrupt:
            screen.print("\nInterrupted. There is no artifact.")
            _say_leftovers(out, screen)
            raise typer.Exit(130) from None
        except Exception:
            _say_leftovers(out, screen)
            raise
        screen.print(Text(f"{out} is ready ({made[:12]})."), soft_wrap=True)
        screen.print(Text(f"In a spec: optimizations: [{{{name}: {{artifact: {out}}}}}]"))

    own = _parameters(kind)
    run.__signature__ = inspect.Signature([*_common(), *own])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*_common(), *own)}
    run.__doc__ = inspect.cleandoc(kind.__doc__ or "")
    return run


def _say_leftovers(out: str, screen: Console) -> None:
    for left in leftovers(out):
        screen.print(Text(leftover_text(left), style="yellow"), soft_wrap=True)


def _absolute(path: str) -> str:
    place = Path(path).expanduser()
    return str(place.absolute()) if "://" not in path and place.exists() else path


def _absolute_all(paths: Any) -> Any:
    """A setting of one path or several."""
    if isinstance(paths, list):
        return [_absolute(path) for path in paths]
    return paths if paths is None else _absolute(paths)


def _common() -> list[inspect.Parameter]:
    dtypes = Literal["auto", "float32", "bfloat16", "float16"]
    return [
        _option("model", str, ..., "A folder with safetensors, a hub id, or demo."),
        _option(
            "data",
            list[str],
            ...,
            "Texts: .txt, .jsonl, .csv, .parquet, a hub id, or demo/training; or several.",
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
        _option(
            "reuse",
            bool,
            False,
            "Do nothing where --out, on this machine, was made from the same model, by the same "
            "settings, from data of the same name.",
        ),
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
    if get_origin(annotation) is UnionType:
        plain = [_plain(kind) for kind in get_args(annotation)]
        return reduce(operator.or_, plain)
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
