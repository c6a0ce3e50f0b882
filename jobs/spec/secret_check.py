"""No secret gets into a trial: what a spec says is written to the manifest, logs and reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.telemetry.redaction import secret_in
from jobs.spec.trial_spec import TrialSpec
from optim.errors import InputError


def require_no_secrets(spec: TrialSpec, spec_path: str | Path) -> None:
    """InputError, which does not repeat it, where a spec holds a password, a signature or the value
    of a secret variable of the environment."""
    require_none_secret(spec.model_dump(mode="json"), spec_path)


def require_none_secret(values: Any, source: str | Path) -> None:
    """The same of any plain values, whose keys are what the error names."""
    for field, text in _texts("", values):
        found = secret_in(text)
        if found is not None:
            raise InputError(
                f"holds {found}, and what is given here is written beside what is made of it",
                source=source,
                field=field,
                mend="Leave it out, and give it in the environment or in the credentials file of "
                "the storage (such as AWS_ACCESS_KEY_ID, HF_TOKEN)",
            )


def _texts(field: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _texts(f"{field}.{key}" if field else str(key), each)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _texts(f"{field}[{index}]", each)
