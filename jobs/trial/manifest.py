"""The manifest: what a trial is and what it first ran on, written once."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from cluster.results.results import MANIFEST, PROMPTS_FILE, Results, write_prompts
from cluster.storage.creation import create_alone
from jobs.provenance.artifact_notes import artifact_notes
from jobs.provenance.code_version import package_version
from jobs.spec.trial_spec import DatasetSpec
from jobs.trial.plan_diff import Wanted
from optim.allotment import usable_cpus
from optim.errors import InputError

PACKAGES = ("optrial", "ray", "torch", "transformers", "tokenizers", "datasets", "pyarrow")


def write_manifest(results: Results, wanted: Wanted, hardware: list[dict[str, Any]]) -> None:
    """Write the prompts as run, then the manifest, which makes the folder a trial's.

    InputError where the place cannot be written to, and where another trial was quicker.
    """
    manifest = {
        "plan": wanted.plan.model_dump(mode="json"),
        "prompts": PROMPTS_FILE,
        "datasets": [with_place(dataset) for dataset in wanted.spec.datasets],
        "code": wanted.code.model_dump(mode="json"),
        "versions": {name: package_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": {
            "processor": processor(),
            "cpus": os.cpu_count(),
            "usable_cpus": usable_cpus(),
            "memory_bytes": psutil.virtual_memory().total,
            "workers": hardware,
        },
        "git": git_state(),
        "author_settings": _author_settings(wanted),
        "from_model": wanted.spec.generation.from_model,
        "notes": wanted.notes,
        "artifact_notes": [each.model_dump(mode="json") for each in artifact_notes(wanted.plan)],
        "created_at": now(),
    }
    try:
        if results.store.exists(MANIFEST):
            raise _begun_by_others(results)
        prompts = write_prompts(results.store, wanted.prompts)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        is_first = create_alone(results.store, MANIFEST, text.encode())
        if is_first and results.store.read(PROMPTS_FILE) != prompts:
            # Those of another who began at the same moment, and was not first.
            results.store.replace(PROMPTS_FILE, prompts)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}",
            source=results.output,
            field="output",
            mend="Choose a place that you may write to",
        ) from error
    if not is_first:
        raise _begun_by_others(results)


def _author_settings(wanted: Wanted) -> dict[str, Any]:
    """What a reader should know beside the spec's own; used only as far as both agree."""
    from optim.author_settings import author_settings

    model = wanted.plan.model
    return author_settings(model.path, revision=model.revision)


def _begun_by_others(results: Results) -> InputError:
    return InputError(
        "another driver has just begun a trial there",
        source=results.output,
        field="output",
        mend="Run the command again, with --join to run along with it",
    )


def with_place(dataset: DatasetSpec) -> dict[str, Any]:
    """The dataset's spec, from which more prompts can be drawn wherever one stands."""
    shown = dataset.model_dump(mode="json", exclude_unset=True)
    path = shown.get("path")
    if path is not None and "://" not in path and Path(path).expanduser().exists():
        shown["path"] = str(Path(path).expanduser().absolute())
    return {**shown, "name": dataset.name}


def processor() -> str:
    """The processor's name, as its maker gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def git_state() -> dict[str, Any] | None:
    """Commit of the code and whether it has changes; None outside a checkout."""
    here = Path(__file__).parents[1]
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(here, "status", "--porcelain", "--", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
