"""SQL over a trial's results, by DuckDB, and a connection that cannot do anything but read them.

Views: `generations` and `likelihoods` (one row per result, `configuration` first), `prompts` (as
run) and `cells` (one row per committed cell, from the parts' footers). Their columns are fixed by
`cluster.schema` and `jobs.cells`, whichever parts there are: an absent column is null, and a trial
that has committed nothing has empty views.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.csv as csv
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.results import Results
from cluster.storage import LocalStore, ObjectStore
from jobs.views import connect, escaped, open_views, quoted
from optim.errors import InputError

__all__ = ["connect", "lock", "print_sql", "run_sql"]


def run_sql(results: Results, sql: str) -> pa.Table:
    """The rows that one SELECT over the views gives.

    Nothing else can be done with it: only a single SELECT (also WITH, FROM, DESCRIBE, SUMMARIZE) is
    run, by a connection that may open the files of its views and no others, and cannot be unlocked.
    """
    connection, files = open_views(results)
    try:
        lock(connection, results.store, files)
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


def lock(
    connection: duckdb.DuckDBPyConnection, store: LocalStore | ObjectStore, files: Sequence[str]
) -> None:
    """Leave a connection nothing but reading these files, for good.

    Files and not their folder: a link in it may lead anywhere.
    """
    # The views name files with pattern characters escaped, and DuckDB checks both forms.
    forms = {form for file in files for form in (file, escaped(file, store))}
    if isinstance(store, ObjectStore):
        # A file system may answer with or without the slash that begins its root.
        start = f"{store.protocol}://"
        forms |= {f"{start}/{form.removeprefix(start).lstrip('/')}" for form in forms}
    connection.execute(f"SET allowed_paths = [{', '.join(map(quoted, sorted(forms)))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
