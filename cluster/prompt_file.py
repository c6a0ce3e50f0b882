"""Read a file of prompts as run: other prompts than those that were frozen must not be run."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.schema import schema
from cluster.storage import LocalStore, ObjectStore
from optim.errors import InputError

FROM_A_COPY = "Take the file from a copy of the results"


def read_prompts(store: LocalStore | ObjectStore, name: str) -> pa.Table:
    """The rows of one file. InputError where it is absent, or not what was written.

    Page checksums say so of values. The footer has none: a column that it names otherwise would be
    read as nulls, and rows that it does not count would be left out.
    """
    cause: Exception
    try:
        source = pa.BufferReader(store.read(name))
        _require_whole(pq.read_metadata(source))
        source.seek(0)
        return pq.read_table(source, schema=schema("prompts"), page_checksum_verification=True)
    except FileNotFoundError as error:
        problem, cause = "the prompts as run are not there", error
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        lines = str(error).splitlines() or [repr(error)]
        problem, cause = f"the prompts are not what was run: {lines[0]}", error
    # Of the output: no cell is to blame, and none could be run.
    raise InputError(problem, source=store.path(name), field="output", mend=FROM_A_COPY) from cause


def _require_whole(found: pq.FileMetaData) -> None:
    unknown = set(found.schema.to_arrow_schema().names) - set(schema("prompts").names)
    if unknown:
        raise ValueError(f"its footer names columns that there are not: {sorted(unknown)}")
    if found.num_rows != sum(found.row_group(i).num_rows for i in range(found.num_row_groups)):
        raise ValueError("its footer does not count its rows")
