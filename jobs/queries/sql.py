"""SQL over a trial's results, by DuckDB, and a connection that cannot do anything but read them.

Views: `generations` and `likelihoods` (one row per result, `configuration` first), `prompts` (as
run) and `cells` (one row per committed cell, from the parts' footers). Their columns are fixed by
`cluster.results.schema` and `jobs.queries.cells`, whichever parts there are: an absent column is
null, and a trial that has committed nothing has empty views.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import duckdb
import pyarrow as pa
from rich.console import Console

from cluster.results.results import Results
from cluster.storage.open_store import LocalStore, ObjectStore
from jobs.formatting import plural
from jobs.queries.formats import FORMATS, Answer
from jobs.queries.views import connect, escaped, open_views, quoted
from optim.errors import InputError

__all__ = ["connect", "lock", "print_sql", "run_sql"]


def run_sql(results: Results, sql: str) -> pa.Table:
    """The rows that one SELECT over the views gives; of columns with one name, the later ones are
    `name_1`, `name_2`, and so on.

    Nothing else can be done with it: only a single SELECT (also WITH, FROM, DESCRIBE, SUMMARIZE) is
    run, by a connection that may open the files of its views and no others, and cannot be unlocked.
    """
    with _answered(results, sql) as answer:
        return answer.arrow()


def print_sql(results: Results, sql: str, output_format: str, console: Console) -> None:
    """Print what `run_sql` gives, as a `table` for people, as `csv`, or as `jsonl`."""
    if output_format not in FORMATS:
        raise InputError(
            f"there is no format {output_format!r}",
            field="--format",
            mend="Use table, csv or jsonl",
        )
    with _answered(results, sql) as answer:
        if output_format == "csv":
            console.file.write(answer.csv().decode())
        elif output_format == "jsonl":
            lines, num_lost = answer.lines()
            console.file.writelines(line + "\n" for line in lines)
            if num_lost:
                said = f"{plural(num_lost, 'number')} infinite or undefined: null, as JSON has none"
                print(said, file=sys.stderr)
        else:
            console.print(answer.table())


@contextmanager
def _answered(results: Results, sql: str) -> Iterator[Answer]:
    connection, files = open_views(results)
    try:
        lock(connection, results.store, files)
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise InputError(
                "only one SELECT is answered, and results are never changed", field="SQL"
            )
        yield Answer(connection, statements[0].query)
    except duckdb.Error as error:
        raise InputError(str(error).strip(), field="SQL") from error
    finally:
        connection.close()


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
