"""A trial's results as few small files, for the repository, and as a results folder again.

`python tests/support/trials/stored_trial.py RESULTS FOLDER` stores those of a folder. Parts become
one table of each kind; what names a machine or a place on it is left out, and decides nothing that
is reported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CELL_FACTS = b"optrial.cell"
KINDS = ("generations", "likelihoods")
LOCAL = {"node": "node", "worker": "worker"}
"""Columns and facts that name a machine, and what stands there instead."""


def stored(results: Path, folder: Path) -> None:
    """Write the manifest's plan, the prompts, and the rows and facts of all parts."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = json.loads((results / "manifest.json").read_text())["plan"]
    plan["output"] = folder.name
    manifest = {"plan": _without_places(plan), "versions": {}, "hardware": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    _write(pq.read_table(results / "inputs" / "prompts.parquet"), folder / "prompts.parquet")
    for kind in KINDS:
        paths = sorted((results / kind).glob("configuration=c-*/part-*.parquet"))
        files = [pq.ParquetFile(path) for path in paths]
        tables = [_anonymous(file.read()) for file in files]
        facts = [json.loads(file.metadata.metadata[CELL_FACTS]) | LOCAL for file in files]
        _write(pa.concat_tables(tables), folder / f"{kind}.parquet")
        cells = {
            "path": [f"{path.parent.name}/{path.name}" for path in paths],
            "rows": [len(table) for table in tables],
            "facts": [json.dumps(each, sort_keys=True) for each in facts],
        }
        _write(pa.table(cells), folder / f"{kind}-cells.parquet")


def restored(folder: Path, results: Path) -> None:
    """The results folder: parts without receipts, which reading does not need."""
    (results / "inputs").mkdir(parents=True)
    (results / "manifest.json").write_text((folder / "manifest.json").read_text())
    pq.write_table(pq.read_table(folder / "prompts.parquet"), results / "inputs/prompts.parquet")
    for kind in KINDS:
        rows = pq.read_table(folder / f"{kind}.parquet")
        start = 0
        for cell in pq.read_table(folder / f"{kind}-cells.parquet").to_pylist():
            part = results / kind / cell["path"]
            part.parent.mkdir(parents=True, exist_ok=True)
            metadata = {**(rows.schema.metadata or {}), CELL_FACTS: cell["facts"].encode()}
            own = rows.slice(start, cell["rows"]).replace_schema_metadata(metadata)
            pq.write_table(own, part, compression="none")
            start += cell["rows"]


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", compression_level=19)


def _anonymous(table: pa.Table) -> pa.Table:
    """Without the footer's facts, which are kept beside it."""
    metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k != CELL_FACTS}
    for name, value in LOCAL.items():
        place = table.schema.get_field_index(name)
        if place >= 0:
            column = pa.array([value] * len(table), pa.string())
            table = table.set_column(place, table.schema.field(place), column)
    return table.replace_schema_metadata(metadata)


def _without_places(value: Any) -> Any:
    """The same with the last part alone of every absolute path."""
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    is_place = isinstance(value, str) and value.startswith("/")
    return PurePosixPath(value).name if is_place else value


if __name__ == "__main__":
    stored(Path(sys.argv[1]), Path(sys.argv[2]))
