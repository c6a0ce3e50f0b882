"""Preparations that end early say what they keep, where, and what can be done with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from program import Run

from jobs.preparation.leftovers import leftovers
from optim.errors import InputError


def left_beside(out: Path) -> None:
    """As a preparation that was interrupted while it tuned, and one that was killed."""
    for name, size in ((f".{out.name}.tuning", 3 << 20), (f".{out.name}.x1y2", 1 << 10)):
        folder = out.parent / name / "checkpoint-8"
        folder.mkdir(parents=True)
        (folder / "trained.safetensors").write_bytes(bytes(size))


def test_only_this_artifacts_folders_are_meant(tmp_path: Path) -> None:
    left_beside(tmp_path / "a[1]")
    left_beside(tmp_path / "other")
    (tmp_path / ".a[1].txt").write_text("a file")
    found = leftovers(str(tmp_path / "a[1]"))
    assert [(each.path.name, each.is_resumable) for each in found] == [
        (".a[1].tuning", True),
        (".a[1].x1y2", False),
    ]
    assert found[0].num_bytes >= 3 << 20
    assert leftovers(str(tmp_path / "none" / "a")) == []


@pytest.mark.parametrize("end", [KeyboardInterrupt(), InputError("no", field="--data")])
def test_an_end_before_the_end_says_what_is_kept(
    end: BaseException, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "vocabulary"

    def ends(*args: Any, **kwargs: Any) -> str:
        left_beside(out)
        raise end

    monkeypatch.setattr("jobs.cli.prepare.prepare", ends)
    words = ("prepare", "adaptivocab", "--model", "demo", "--data", "demo/training", "--out", out)
    code, printed, _ = run(*words)
    assert code == (2 if isinstance(end, InputError) else 130)
    said = " ".join(printed.split())
    kept = f"{tmp_path / '.vocabulary.tuning'} (3"
    assert said.count(kept) == 1
    assert "is kept: the same command goes on from it, or remove it." in said
    assert f"{tmp_path / '.vocabulary.x1y2'} (1" in said
    assert "unless one is running: remove it" in said
