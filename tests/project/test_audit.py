"""The audit of dependencies fails on what is known, and says loudly where nothing can be known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"
SOUND = {"name": "numpy", "version": "2", "vulns": []}
HARMED = {
    "name": "old",
    "version": "1",
    "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["1.1"], "aliases": []}],
}
SKIPPED = {"name": "local", "skip_reason": "not found"}


def audited(tmp_path: Path, *, out: str = "", err: str = "", code: int = 0) -> tuple[int, str]:
    """What the script makes of a pip-audit that answers so: exit code, and all that was said."""
    program = tmp_path / "pip-audit"
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"sys.stdout.write({out!r})\nsys.stderr.write({err!r})\nsys.exit({code})\n"
    )
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(program)], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def answer(*packages: object) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_nothing_known(tmp_path: Path) -> None:
    code, said = audited(tmp_path, out=answer(SOUND, SKIPPED))
    assert code == 0
    assert "1 packages without known vulnerabilities, 2 installed" in said


def test_a_vulnerability_fails(tmp_path: Path) -> None:
    code, said = audited(tmp_path, out=answer(SOUND, HARMED), code=1)
    assert code == 1
    assert "old 1: PYSEC-2026-1, mended in 1.1" in said


@pytest.mark.parametrize(
    "err",
    [
        "Traceback\nrequests.exceptions.ConnectionError: Max retries exceeded with url: /v1/query",
        "ERROR:pip_audit._cli:ServiceError: timed out",
    ],
)
def test_no_network_is_said_and_does_not_fail(tmp_path: Path, err: str) -> None:
    code, said = audited(tmp_path, err=err, code=1)
    assert code == 0
    assert said.startswith("DEPENDENCIES NOT AUDITED")


def test_a_service_that_knows_nothing_is_no_audit(tmp_path: Path) -> None:
    code, said = audited(tmp_path, out=answer(SKIPPED))
    assert code == 0
    assert said.startswith("DEPENDENCIES NOT AUDITED")


def test_other_failures_fail(tmp_path: Path) -> None:
    code, said = audited(tmp_path, err="usage: pip-audit: error: unknown option", code=2)
    assert code == 1
    assert "unknown option" in said
