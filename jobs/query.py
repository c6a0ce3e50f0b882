"""SQL over a trial's results, by DuckDB, and a connection that cannot do anything but read them.

Views: `generations` and `likelihoods` (one row per result, `configuration` first), `prompts` (as
run) and `cells` (one row per committed cell, from the parts' footers). Their columns are fixed by
`cluster.schema` and `jobs.cells`, whichever parts there are: an absent column is null, and a trial
that has committed nothing has empty views.
"""

from __future__ import annotations

import json
import os

import duckdb
import pyarrow as pa
import pyarrow.csv as csv
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.results import Results
from cluster.schema import schema
from cluster.storage import LocalStore, ObjectStore
from jobs.cells import cells_table
from optim.errors import InputError

_GLOB_CHARACTERS = "*?["
_SMALL_BYTES = 64 << 20


def connect(results: Results) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views; one thread, large results are read where they lie.

    Parts that are committed later are not seen: connect again.
    """
    connection = duckdb.connect(
        config={
            "threads": 1,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    connection.execute("SET TimeZone = 'UTC'")
    # Names in SQL mean views, never Python variables of whoever calls.
    connection.execute("SET python_enable_replacements = false")
    store = results.store
    if isinstance(store, ObjectStore):
        connection.register_filesystem(store.filesystem)
    generations = [part.name for part in results.parts("generations")]
    likelihoods = [part.name for part in results.parts("likelihoods")]
    _create_view(connection, store, "generations", generations, with_configuration=True)
    _create_view(connection, store, "likelihoods", likelihoods, with_configuration=True)
    _create_view(connection, store, "prompts", results.prompt_files(), with_configuration=False)
    connection.register("_cells", cells_table(results))
    connection.execute("CREATE TABLE cells AS SELECT * FROM _cells")
    connection.unregister("_cells")
    return connection


def run_sql(results: Results, sql: str) -> pa.Table:
    """The rows that one SELECT over the views gives.

    Nothing else can be done with it: only a single SELECT (also WITH, FROM, DESCRIBE, SUMMARIZE) is
    run, by a connection that may open the results' own files and no others and cannot be unlocked.
    """
    connection = connect(results)
    try:
        _lock(connection, results.store)
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise InputError(
                "only one SELECT is answered, and results are never changed", field="SQL"
            )
        return connection.sql(statements[0].query).to_arrow_table()
    except duckdb.Error as error:
        raise InputError(str(error).strip(), field="SQL") from error
    finally:
        connection.close()


def print_sql(results: Results, sql: str, output_format: str, console: Console) -> None:
    """Print what `run_sql` gives, as a `table` for people, as `csv`, or as `jsonl`."""
    if output_format not in ("table", "csv", "jsonl"):
        raise InputError(
            f"there is no format {output_format!r}",
            field="--format",
            mend="Use table, csv or jsonl",
        )
    found = run_sql(results, sql)
    if output_format == "csv":
        lists = [pa.types.is_nested(kind) for kind in found.schema.types]
        columns = [
            pa.array([None if v is None else json.dumps(v, default=str) for v in c.to_pylist()])
            if is_list
            else c
            for c, is_list in zip(found.columns, lists, strict=True)
        ]
        sink = pa.BufferOutputStream()
        csv.write_csv(pa.table(columns, names=found.column_names), sink)
        console.file.write(sink.getvalue().to_pybytes().decode())
        return
    if output_format == "jsonl":
        for row in found.to_pylist():
            console.file.write(json.dumps(row, default=str, ensure_ascii=False) + "\n")
        return
    table = Table()
    for field in found.schema:
        is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        table.add_column(Text(field.name), justify="right" if is_number else "left")
    for row in found.to_pylist():
        # As Text, so that brackets in completions are not read as markup.
        table.add_row(*(Text("" if value is None else str(value)) for value in row.values()))
    console.print(table)


def _lock(connection: duckdb.DuckDBPyConnection, store: LocalStore | ObjectStore) -> None:
    if isinstance(store, LocalStore):
        # The views name files with pattern characters escaped, and DuckDB checks both forms.
        folder = os.path.abspath(store.root) + "/"
        folders = [folder, _escaped(folder)]
    else:
        # A file system may answer with or without the slash that begins its root.
        root = str(store.root).strip("/")
        folders = [f"{store.protocol}://{root}/", f"{store.protocol}:///{root}/"]
    connection.execute(f"SET allowed_directories = [{', '.join(map(_quoted, folders))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _create_view(
    connection: duckdb.DuckDBPyConnection,
    store: LocalStore | ObjectStore,
    table: str,
    names: list[str],
    *,
    with_configuration: bool,
) -> None:
    types = _column_types(connection, table)
    if not names:
        columns = {"configuration": "VARCHAR", **types} if with_configuration else types
        typed = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in columns.items())
        connection.execute(f"CREATE VIEW {table} AS SELECT {typed} WHERE false")
        return
    files = ", ".join(_quoted(_address(store, name)) for name in names)
    fields = ", ".join(
        f"'{name}': {{name: '{name}', type: '{kind}', default_value: NULL}}"
        for name, kind in types.items()
    )
    configuration = (
        r"regexp_extract(filename, '.*/configuration=c-([^/]+)/[^/]+$', 1) AS configuration, "
        if with_configuration
        else ""
    )
    selection = (
        f"SELECT {configuration}* EXCLUDE (filename) FROM read_parquet("
        f"[{files}], schema = MAP {{{fields}}}, filename = true, hive_partitioning = false)"
    )
    if _is_small(store, names):
        try:
            connection.execute(f"CREATE TABLE {table} AS {selection}")
            return
        except duckdb.Error:
            pass  # Whoever asks for the damaged rows is told, and nobody else.
    connection.execute(f"CREATE VIEW {table} AS {selection}")


def _is_small(store: LocalStore | ObjectStore, names: list[str]) -> bool:
    """Whether it is read once into memory: opening many small files for each query takes longer."""
    if not isinstance(store, LocalStore):
        return False
    try:
        return sum(os.stat(store.path(name)).st_size for name in names) <= _SMALL_BYTES
    except OSError:
        return False


def _column_types(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    """DuckDB's own names for the types of the published schema."""
    described = connection.from_arrow(schema(table).empty_table())
    return dict(zip(described.columns, map(str, described.types), strict=True))


def _address(store: LocalStore | ObjectStore, name: str) -> str:
    path = store.path(name)
    return _escaped(os.path.abspath(path) if isinstance(store, LocalStore) else path)


def _escaped(path: str) -> str:
    """A path with the characters escaped that DuckDB would take for a pattern."""
    return "".join(f"[{c}]" if c in _GLOB_CHARACTERS else c for c in path)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
