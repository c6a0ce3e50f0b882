"""Adapters (LoRA and the like) that lie beside weights: refused, since who reads them is chance.

transformers adds one to the weights where peft is installed, without a word, and passes it over
where it is not; methods that read weights by themselves never see it.
"""

from __future__ import annotations

from pathlib import Path

from optim.errors import InputError

ADAPTER = "adapter_config.json"


def require_no_adapter(folder: Path, field: str) -> None:
    """InputError where a folder holds an adapter, with whole weights or alone."""
    file = folder / ADAPTER
    if not file.exists():
        return
    is_beside = (folder / "config.json").is_file()
    raise InputError(
        "an adapter lies beside the weights, and is applied by some readers and dropped by others"
        if is_beside
        else "is an adapter alone, without the weights that it changes",
        source=file,
        field=field,
        mend="Merge it into them (peft: merge_and_unload), save the whole model and give that"
        + (", or remove the file" if is_beside else ""),
    )
