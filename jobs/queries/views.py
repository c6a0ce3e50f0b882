"""DuckDB over a trial's results: the views, whose every file was checked before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import duckdb
import pyarrow as pa

from cluster.results.results import KINDS, Results
from cluster.results.schema import schema
from cluster.results.snapshot import Readable, readable
from cluster.storage.open_store import LocalStore, ObjectStore
from jobs.queries.cells import cells_table

_GLOB_CHARACTERS = "*?["
_SMALL_BYTES = 64 << 20
_CONFIGURATION = r"regexp_extract(filename, '.*/configuration=c-([^/]+)/[^/]+$', 1)"


def connect(results: Results) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views; one thread, large results are read where they lie.

    Parts that are committed later are not seen: connect again. Raises InputError where a part is
    not what was committed: DuckDB would make plausible totals of it.
    """
    return open_views(results)[0]


def open_views(results: Results) -> tuple[duckdb.DuckDBPyConnection, list[str]]:
    """The same, and the addresses of the files that its views read when they are asked."""
    found = readable(results)
    connection = duckdb.connect(
        config={
            "threads": 1,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            # What spills goes there and not into the folder where one stands.
            "temp_directory": os.path.join(tempfile.gettempdir(), f"optrial-duckdb-{os.getpid()}"),
        }
    )
    connection.execute("SET TimeZone = 'UTC'")
    # Names in SQL mean views, never Python variables of whoever calls.
    connection.execute("SET python_enable_replacements = false")
    store = results.store
    if isinstance(store, ObjectStore):
        connection.register_filesystem(store.filesystem)
    read_later: list[str] = []
    for kind in KINDS:
        large, parts = found.names(kind)
        selection = _rows_of(connection, store, kind, large, parts, found.stale)
        # Opening many small files for each query takes longer than reading them once; of few large
        # ones a query reads the columns that it needs.
        is_small = bool(parts) and found.num_bytes(kind) <= _SMALL_BYTES
        connection.execute(f"CREATE {'TABLE' if is_small else 'VIEW'} {kind} AS {selection}")
        if not is_small:
            read_later += [_plain_address(store, name) for name in (*large, *parts)]
    prompts = _selection(connection, store, "prompts", found.prompts)
    connection.execute(f"CREATE VIEW prompts AS {prompts}")
    read_later += [_plain_address(store, name) for name in found.prompts]
    _create_cells(connection, results, found)
    return connection, read_later


def _create_cells(connection: duckdb.DuckDBPyConnection, results: Results, found: Readable) -> None:
    connection.register("_cells", cells_table(results, found))
    connection.execute("CREATE TABLE cells AS SELECT * FROM _cells")
    connection.unregister("_cells")


def _rows_of(
    connection: duckdb.DuckDBPyConnection,
    store: LocalStore | ObjectStore,
    table: str,
    large: Sequence[str],
    parts: Sequence[str],
    stale: frozenset[str],
) -> str:
    if not stale or not large:
        return _selection(connection, store, table, [*large, *parts], with_configuration=True)
    keys = ", ".join(quoted(key) for key in sorted(stale))
    compacted = _selection(connection, store, table, large, with_configuration=True)
    found = f"SELECT * FROM ({compacted}) WHERE cell IS NULL OR cell NOT IN ({keys})"
    if not parts:
        return found
    others = _selection(connection, store, table, parts, with_configuration=True)
    return f"{found} UNION ALL {others}"


def _selection(
    connection: duckdb.DuckDBPyConnection,
    store: LocalStore | ObjectStore,
    table: str,
    names: Sequence[str],
    *,
    with_configuration: bool = False,
) -> str:
    """The statement that reads files, with the published columns whichever there are."""
    types = _column_types(connection, table)
    if not names:
        columns = {"configuration": "VARCHAR", **types} if with_configuration else types
        typed = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in columns.items())
        return f"SELECT {typed} WHERE false"
    files = ", ".join(quoted(escaped(_plain_address(store, name), store)) for name in names)
    fields = ", ".join(
        f"'{name}': {{name: '{name}', type: '{kind}', default_value: NULL}}"
        for name, kind in types.items()
    )
    configuration = f"{_CONFIGURATION} AS configuration, " if with_configuration else ""
    return (
        f"SELECT {configuration}* EXCLUDE (filename) FROM read_parquet("
        f"[{files}], schema = MAP {{{fields}}}, filename = true, hive_partitioning = false)"
    )


def _column_types(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    """DuckDB's own names for the types of the published schema."""
    empty: pa.Table = schema(table).empty_table()
    described = connection.from_arrow(empty)
    return dict(zip(described.columns, map(str, described.types), strict=True))


def _plain_address(store: LocalStore | ObjectStore, name: str) -> str:
    path = store.path(name)
    return os.path.abspath(path) if isinstance(store, LocalStore) else path


def escaped(path: str, store: LocalStore | ObjectStore) -> str:
    """A local path with the characters escaped that DuckDB would take for a pattern."""
    if not isinstance(store, LocalStore):
        return path
    return "".join(f"[{c}]" if c in _GLOB_CHARACTERS else c for c in path)


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
