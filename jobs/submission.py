"""What a trial becomes as a job of a cluster: its command line, and the files that it needs.

A job runs in a copy of the working directory, on machines that have nothing else of this one. What
a spec names by a relative path goes along; results must not lie there, for the copy does not stay.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jobs.spec.configurations import expand
from jobs.spec.secret_check import require_no_secrets
from jobs.spec.trial_spec import TrialSpec, read_spec
from optim.errors import InputError

KERNELS = PurePosixPath("optim/larosa/kernels/sparse_kernels.so")
"""Compiled by the installation; ignored by git, and not by whoever runs a checkout's code."""

_DATA_FILE = re.compile(r"\.(jsonl|csv|parquet)(\.gz)?$", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Head and workers may themselves have been started by `uv run`; Ray would then build an environment
# for each working directory, although the one that `python` belongs to is there on every node.
ENVIRONMENT = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


@dataclass(frozen=True)
class Submission:
    """A job to be."""

    spec: str
    """The spec's place within the working directory."""
    output: str
    entrypoint: str
    """A line of shell."""
    needed: tuple[PurePosixPath, ...]
    """Files and folders of the working directory that go along whatever is ignored."""
    notes: tuple[str, ...]
    """What has to be so on the cluster and cannot be seen from here."""


def submission(
    spec_path: Path, working_dir: Path, output: str | None = None, options: Sequence[str] = ()
) -> Submission:
    """The job that runs a spec; `output` is there instead of the spec's, `options` are evaluate's.

    InputError for a spec that cannot run, or not there: what it names has to lie within the working
    directory, be absolute, or an address, and its output may not be relative.
    """
    if not working_dir.is_dir():
        raise InputError("there is no such folder", source=working_dir, field="--working-dir")
    spec = read_spec(spec_path)
    if output is not None:
        spec = spec.model_copy(update={"output": output})
    require_no_secrets(spec, spec_path)
    places = _Places(working_dir.resolve(), spec_path)
    place = places.spec()
    _require_lasting_output(spec.output, spec_path)
    needed: list[PurePosixPath] = [place]
    notes: list[str] = []
    for field, path in _local_paths(spec, spec_path, working_dir):
        found = places.within(field, path)
        if found is None:
            notes.append(f"{field}: {path} is not uploaded: every node needs it at that place")
        else:
            needed.append(found)
    if "://" not in spec.output:
        notes.append(f"output: {spec.output} has to lie on storage that all nodes share")
    for word in places.left_here(options):
        notes.append(f"{word} is not uploaded: every node needs it at that place")
    if (working_dir / KERNELS).is_file():
        needed.append(KERNELS)
    words = ["python", "-m", "jobs", "evaluate", place.as_posix()]
    if output is not None:
        words += ["--output", output]
    return Submission(
        spec=place.as_posix(),
        output=spec.output,
        entrypoint=shlex.join([*words, *options]),
        needed=(*needed, *places.files_among(options)),
        notes=tuple(notes),
    )


def submission_id(spec_path: Path, given: str | None = None) -> str:
    """The id as given, or one that says which spec it is; InputError where it cannot be one."""
    if given is None:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", spec_path.stem).strip("-.")[:40] or "trial"
        return f"optrial-{stem}-{secrets.token_hex(3)}"
    if not _ID.fullmatch(given):
        raise InputError(
            "expected letters, digits and `.`, `_`, `-` only, 100 at most",
            source=given,
            field="--submission-id",
        )
    return given


def job_environment(given: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    """Variables of a job from `NAME=VALUE`, or `NAME` for the value that it has here.

    InputError, which repeats no value, for what is neither.
    """
    found = dict(ENVIRONMENT)
    for word in given:
        name, separator, value = word.partition("=")
        if not _NAME.fullmatch(name):
            raise InputError("expected NAME=VALUE, or NAME", field="--env")
        if not separator and name not in here:
            raise InputError(f"{name} is not set here", field="--env", mend="Give its value")
        found[name] = value if separator else here[name]
    return found


class _Places:
    """Paths as the job will see them: relative ones begin at the working directory."""

    def __init__(self, working_dir: Path, spec_path: Path) -> None:
        self.working_dir, self.spec_path = working_dir, spec_path

    def spec(self) -> PurePosixPath:
        real = self.spec_path.resolve()
        # A link in the working directory is uploaded as what it points to; `..` is no part of it.
        for place in (Path(os.path.abspath(self.spec_path)), real):
            if place.is_relative_to(self.working_dir) and place.resolve() == real:
                return PurePosixPath(place.relative_to(self.working_dir).as_posix())
        raise InputError(
            f"the spec does not lie in the working directory, {self.working_dir}",
            source=self.spec_path,
            mend="Give a --working-dir that holds the spec and what it names",
        )

    def within(self, field: str, path: str) -> PurePosixPath | None:
        """Where a path lies in the working directory; None for an absolute one.

        InputError where nothing is there, or it leads out.
        """
        if path.startswith(("/", "~")):
            return None
        # Only `..` leads out: a link within the working directory is uploaded as what it points to.
        parts: list[str] = []
        for part in PurePosixPath(path).parts:
            if part == ".." and not parts:
                raise self._error("leads out of the working directory", field, path)
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        place = PurePosixPath(*parts)
        if not (self.working_dir / place).exists():
            raise self._error("there is no such file or folder", field, path)
        return place

    def _error(self, problem: str, field: str, path: str) -> InputError:
        return InputError(
            f"{path}: {problem} ({self.working_dir}), where the job would look",
            source=self.spec_path,
            field=field,
            mend="Put it there, or give the absolute place that it has on every node, or an "
            "address such as s3://…",
        )

    def files_among(self, options: Sequence[str]) -> Iterator[PurePosixPath]:
        """Options that name a file of the working directory, as `--claims FILE` does."""
        for word in _words(options):
            if word.startswith(("/", "~")) or not _is_file(self.working_dir / word):
                continue
            place = self.within("what follows `--`", word)
            if place is not None:
                yield place

    def left_here(self, options: Sequence[str]) -> Iterator[str]:
        """Options that name a file of this machine by its absolute place."""
        for word in _words(options):
            if word.startswith(("/", "~")) and _is_file(Path(word).expanduser()):
                yield word


def _words(options: Sequence[str]) -> Iterator[str]:
    """What is given to options, or is none."""
    for option in options:
        word = option.partition("=")[2] if option.startswith("--") else option
        if word and "://" not in word:
            yield word


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False  # too long for a name, or of what no name holds


def _require_lasting_output(output: str, spec_path: Path) -> None:
    scheme, separator, path = output.partition("://")
    if scheme == "memory" and separator:
        problem = "ends with the job"
    elif (path if separator else output).startswith("/") or scheme in {"s3", "gs"}:
        return
    else:
        problem = (
            "is relative to the job's copy of the working directory, and would be lost with it"
        )
    raise InputError(
        f"{output}: {problem}",
        source=spec_path,
        field="output",
        mend="Give --output with an s3:// or gs:// address, or an absolute folder that all nodes "
        "share",
    )


def _local_paths(spec: TrialSpec, spec_path: Path, working_dir: Path) -> Iterator[tuple[str, str]]:
    """Field and path of everything in a spec that lies in a file system, as far as can be told."""

    def is_local(path: str) -> bool:
        is_there = "://" not in path and (working_dir / path).exists()
        return path.startswith((".", "/", "~")) or is_there

    if spec.model.path != "demo" and is_local(spec.model.path):
        yield "model", spec.model.path
    for index, dataset in enumerate(spec.datasets):
        path = dataset.path
        is_file = _DATA_FILE.search(path) is not None and "://" not in path
        if path and not path.startswith("demo/") and (is_file or is_local(path)):
            yield f"datasets[{index}].path", path
        if dataset.include_path is not None:
            yield f"datasets[{index}].include_path", dataset.include_path
    yield from _artifacts(spec, spec_path)


def _artifacts(spec: TrialSpec, spec_path: Path) -> Iterator[tuple[str, str]]:
    """Places in the settings of optimisations; InputError for an optimisation that is none."""
    try:
        expanded = (o for configuration in expand(spec) for o in configuration.optimizations)
        chosen = {(o.name, repr(o.settings)): o for o in expanded}
        for each in chosen.values():
            from optim.registry import optimization  # imports torch, which takes its time

            for key in sorted(optimization(each.name, each.settings).places):
                value = each.settings.get(key)
                if isinstance(value, str):
                    yield f"optimizations.{each.name}.{key}", value
    except InputError as error:
        if error.source is not None:
            raise
        raise InputError(
            error.problem, source=spec_path, field=error.field, mend=error.mend
        ) from error
