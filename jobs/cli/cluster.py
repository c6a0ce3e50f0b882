"""The commands of jobs on a cluster: submit, status, logs, stop."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.jobserver.job_status import duration, exit_code, last_line, moment, outcome
from cluster.telemetry.redaction import strike_out_credentials
from jobs.cli.options import console
from optim.errors import InputError

if TYPE_CHECKING:  # they import Ray, which takes its time
    from ray.job_submission import JobDetails

    from cluster.jobserver.client import JobServer
    from jobs.submission import Submission

Address = Annotated[
    str | None,
    typer.Option(
        help="The cluster's job server, http://HEAD:8265 (else RAY_API_SERVER_ADDRESS, else "
        "RAY_ADDRESS)."
    ),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="A submission id.")]

_OURS = re.compile(r"(-m\s+jobs|\boptrial)\s+evaluate\b")


def submit(
    context: typer.Context,
    spec: Annotated[Path, typer.Argument(help="The trial's spec, a YAML file.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTIONS]", help="Options of `evaluate`, such as --claims."),
    ] = None,
    address: Address = None,
    output: Annotated[
        str | None, typer.Option(help="Where results go, instead of the spec's `output`.")
    ] = None,
    submission_id: Annotated[
        str | None, typer.Option(help="The job's name; by default one is made of the spec's.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job until it has ended.")
    ] = True,
    working_dir: Annotated[
        Path, typer.Option(help="What is uploaded, and where relative paths begin.")
    ] = Path("."),
    entrypoint_num_cpus: Annotated[
        float, typer.Option(min=0, help="CPUs that are reserved for the job's driver.")
    ] = 0.0,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help="A variable of the job, by default as it is here; repeatable. The cluster keeps "
            "it with the job: for secrets see docs/cluster.md.",
        ),
    ] = None,
) -> None:
    """Run a trial as a job of a Ray cluster; Ctrl-C stops watching, and not the job."""
    from jobs.submission import job_environment
    from jobs.submission import submission as prepared
    from jobs.submission import submission_id as named

    err = Console(stderr=True, soft_wrap=True)
    _check_options(context, spec, options or [])
    job = prepared(spec, working_dir, output, options or [])
    environment = job_environment(env or [], os.environ)
    name = named(spec, submission_id)
    for note in job.notes:
        err.print(Text(f"note: {strike_out_credentials(note)}", style="yellow"))
    try:
        server = _upload(job, name, working_dir, environment, entrypoint_num_cpus, address, err)
    except KeyboardInterrupt:
        where = f" --address {shlex.quote(address)}" if address else ""
        err.print(f"\nInterrupted; `optrial status {name}{where}` says whether it was submitted.")
        raise typer.Exit(130) from None
    if not wait:
        typer.echo(name)
        err.print(_commands(name, server), markup=False, highlight=False)
        return
    raise typer.Exit(_follow(server, name, err))


def _check_options(context: typer.Context, spec: Path, options: list[str]) -> None:
    """Usage errors of `evaluate` now, and not on the cluster."""
    commands = context.find_root().command
    evaluate = commands.get_command(context, "evaluate")  # type: ignore[attr-defined]
    parsed = evaluate.make_context("evaluate", [str(spec), *options]).params
    for option in ("output", "address"):
        if parsed[option] is not None:
            mend = "Give it before `--`" if option == "output" else "The job finds its own cluster"
            raise InputError("stands after `--`", field=f"--{option}", mend=mend)


def _upload(
    job: Submission,
    name: str,
    folder: Path,
    environment: Mapping[str, str],
    num_cpus: float,
    address: str | None,
    err: Console,
) -> JobServer:
    from cluster.jobserver.client import JobServer, job_server_address
    from cluster.jobserver.working_directory import mib, working_directory

    where = job_server_address(address)
    files = working_directory(folder, job.needed)
    files.require_it_fits()
    server = JobServer(where)
    count, size = len(files.sizes), mib(files.num_bytes)
    err.print(Text(f"· uploading {count} files, {size}, from {folder.resolve()}", style="dim"))
    with tempfile.TemporaryDirectory(prefix="optrial-") as temporary:
        package = Path(temporary) / "working_dir.zip"
        files.pack(package)
        server.submit(
            job.entrypoint,
            name,
            package=package,
            environment=environment,
            metadata={
                "optrial": _version(),
                "spec": job.spec,
                "output": strike_out_credentials(job.output),
            },
            num_cpus=num_cpus,
        )
    err.print(Text(f"· submitted as {name}", style="dim"))
    return server


def _follow(server: JobServer, name: str, err: Console) -> int:
    """Show a job's log until it has ended; the exit code that fits how it did."""
    from cluster.jobserver.log_follower import follow

    try:
        job = follow(server, name, _write, lambda text: err.print(Text(text, style="yellow")))
    except KeyboardInterrupt:
        err.print("\nDetached; the job goes on.", highlight=False)
        err.print(_commands(name, server), markup=False, highlight=False)
        return 130
    except InputError:
        err.print(_commands(name, server), markup=False, highlight=False)
        raise
    err.print(Text(f"· {name}: {outcome(job)}", style="dim"))
    return exit_code(job)


def _write(text: str) -> None:
    typer.echo(text, nl=False)


def _commands(name: str, server: JobServer) -> str:
    """How to come back to a job."""
    where = _at(server)
    return (
        f"  optrial logs {name} --follow{where}\n"
        f"  optrial status {name}{where}\n"
        f"  optrial stop {name}{where}"
    )


def _at(server: JobServer) -> str:
    return f" --address {shlex.quote(strike_out_credentials(server.address))}"


def status(
    job_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A submission id; by default all.")
    ] = None,
    address: Address = None,
) -> None:
    """Say how a job stands, or list the jobs of trials that a cluster knows."""
    server = _connected(address)
    out = console()
    if job_id is None:
        _print_jobs([job for job in server.jobs() if _is_ours(job)], out)
        return
    job = server.info(job_id)
    facts = {
        "status": outcome(job),
        "spec": (job.metadata or {}).get("spec"),
        "output": (job.metadata or {}).get("output"),
        "entrypoint": strike_out_credentials(job.entrypoint),
        "started": moment(job.start_time),
        "took": duration(job),
        "last line": last_line(server.log(job_id)),
    }
    for key, value in facts.items():
        if value:
            out.print(Text(f"{key + ':':12}{value}"), soft_wrap=True)


def _is_ours(job: JobDetails) -> bool:
    return "optrial" in (job.metadata or {}) or _OURS.search(job.entrypoint) is not None


def _print_jobs(jobs: list[JobDetails], out: Console) -> None:
    if not jobs:
        out.print("no jobs of trials")
        return
    table = Table(box=None, header_style="dim")
    for column in ("job", "status", "started", "took", "spec", "output"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        said = job.metadata or {}
        known = (str(job.submission_id), job.status.value, moment(job.start_time), duration(job))
        table.add_row(*known, said.get("spec", ""), said.get("output", ""))
    out.print(table)


def logs(
    job_id: Id,
    follow: Annotated[
        bool, typer.Option("--follow", help="Until the job has ended; exit with its code.")
    ] = False,
    address: Address = None,
) -> None:
    """Print what a job has printed; Ctrl-C stops watching, and not the job."""
    server = _connected(address)
    if follow:
        raise typer.Exit(_follow(server, job_id, Console(stderr=True, soft_wrap=True)))
    server.info(job_id)  # an unknown job has no log, and no error either
    _write(server.log(job_id))


def stop(job_id: Id, address: Address = None) -> None:
    """Stop a job and wait until it has stopped; what is committed is kept."""
    server = _connected(address)
    out = console()
    before = server.info(job_id).status
    if before.is_terminal():
        out.print(f"{job_id} has ended already: {before.value}", highlight=False)
        return
    job = server.stop(job_id)
    out.print(Text(f"{job_id}: {outcome(job)}."), soft_wrap=True)
    out.print("What is committed is kept; the same spec and output, submitted again, go on.")


def _connected(address: str | None) -> JobServer:
    from cluster.jobserver.client import JobServer, job_server_address

    return JobServer(job_server_address(address))


def _version() -> str:
    try:
        return version("optrial")
    except PackageNotFoundError:
        return "unknown"


COMMANDS: tuple[Callable[..., None], ...] = (submit, status, logs, stop)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in COMMANDS:
        app.command()(command)
