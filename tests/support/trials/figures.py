"""Figures of the reliability tests, kept where `OPTRIAL_FIGURES` says: `make reliability`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def limit(accepted_s: float) -> float:
    """How long something may take: as accepted where figures are kept, on an idle machine.

    Elsewhere other tests run beside it, and a time says little.
    """
    return accepted_s if "OPTRIAL_FIGURES" in os.environ else 8 * accepted_s


def note(number: int, name: str, accepted: str, **measured: Any) -> None:
    """Keep what a test measured beside what it accepts; a rerun replaces it."""
    place = os.environ.get("OPTRIAL_FIGURES")
    if place is None:
        return
    from benchmarks.machine import describe

    file = Path(place)
    kept = json.loads(file.read_text()) if file.exists() else {"benchmark": "reliability"}
    kept["machine"] = describe()
    tests = kept.setdefault("tests", {})
    tests.setdefault(str(number), {})[name] = {"accepted": accepted, **measured}
    kept["tests"] = dict(sorted(tests.items(), key=lambda item: int(item[0])))
    file.write_text(json.dumps(kept, indent=1) + "\n")
