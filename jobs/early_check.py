"""What can be refused before anything slow is imported."""

from __future__ import annotations

from pathlib import Path

from cluster.driver_lock import require_free
from cluster.storage import open_store
from jobs.secrets_in_specs import require_no_secrets
from jobs.spec import read_spec


def require_free_output(spec_path: Path, output: str | None) -> None:
    """LockedError where another driver seems to run the trial; InputError for a spec that is none.

    Loading libraries and models takes many times as long as looking.
    """
    spec = read_spec(spec_path)
    if output is not None:
        spec = spec.model_copy(update={"output": output})
    require_no_secrets(spec, spec_path)
    place = str(Path(spec.output).expanduser()) if "://" not in spec.output else spec.output
    require_free(open_store(place), place)
