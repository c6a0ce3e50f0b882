"""Where prompts are read from: JSONL, Parquet and CSV files, hub datasets, the demo's own.

`datasets` reads the hub. Files are read without it: it fails a whole load for one malformed JSON
line, turns CSV cells such as `007`, `NA` or `5` into other values, and copies every file.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, cast

from jobs.data.file_bytes import require_parquet, require_text
from jobs.data.jsonl import Record, read_lines
from jobs.data.whole_numbers import as_they_were, is_parted
from jobs.spec.trial_spec import DatasetSpec
from jobs.spec.yaml_reader import nearest
from optim.errors import InputError
from optim.proxies import hub_address, proxy_options, proxy_words

_BATCH_BYTES = 64 << 20
"""Of a batch of Parquet rows, as the file counts them."""
STREAM_ABOVE_BYTES = 1 << 30
"""Hub datasets larger than this are streamed even where all rows are wanted."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_WHOLE_FLOAT = re.compile(r"-?\d+\.0")
_SUFFIX = re.compile(r"\.(jsonl|csv|parquet)(\.gz)?$", re.IGNORECASE)
_FILES = frozenset(
    {
        ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".xlsx", ".xls",
        ".gz", ".zst", ".bz2", ".xz", ".zip", ".yaml", ".yml",
    }
)  # fmt: skip
"""How files end, and ids on the hub do not."""
_FORMATS = "Give a .jsonl, .jsonl.gz, .csv or .parquet file, a dataset id on the hub, or demo/…"


class Source(Protocol):
    """Rows that can be read more than once."""

    def columns(self) -> list[str]:
        """Every column that some row has; InputError where there are no rows at all."""
        ...

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        """All rows in order, with at least these columns where they have them."""
        ...


@contextmanager
def opened(dataset: DatasetSpec) -> Iterator[Source]:
    """The source of a dataset; InputError where its path is no such thing."""
    path = dataset.path
    suffix = _SUFFIX.search(path)
    is_hub = suffix is None and not path.startswith("demo/")
    if not is_hub:
        for key in ("subset", "split", "revision"):
            if getattr(dataset, key) is not None:
                mend = f"Leave `{key}` out: only hub datasets have it"
                raise InputError("this is not a hub dataset", source=path, field=key, mend=mend)
    if path.startswith("demo/"):
        with tempfile.TemporaryDirectory() as folder:
            yield JsonlSource(path, _write_demo(path, Path(folder)))
    elif suffix:
        sources: dict[str, Callable[[str], Source]]
        sources = {"jsonl": JsonlSource, "csv": CsvSource, "parquet": ParquetSource}
        yield sources[suffix[1].lower()](path)
    else:
        if _is_local(path) or "://" in path or not _HUB_ID.fullmatch(path):
            raise _unreadable(path)
        yield HubSource(dataset)


def _is_local(path: str) -> bool:
    """Whether a path is meant to be a file's, so that a slip of the pen is not asked of the hub."""
    first = Path(path).parts[0] if Path(path).parts else path
    return (
        path.startswith((".", "/", "~"))
        or Path(path).exists()
        or ("/" in path and Path(first).is_dir())
        or Path(path).suffix.lower() in _FILES
    )


def _unreadable(path: str) -> InputError:
    place = Path(path).expanduser()
    if place.exists() or not _is_local(path):
        return InputError("not a kind of dataset that can be read", source=path, mend=_FORMATS)
    beside = [each.name for each in place.parent.iterdir()] if place.parent.is_dir() else []
    close = nearest(place.name, [name for name in beside if _SUFFIX.search(name)])
    mend = f"Did you mean `{place.parent / close}`?" if close else _FORMATS
    return InputError("there is no such file", source=path, mend=mend)


def _write_demo(path: str, folder: Path) -> str:
    from jobs.data.demo_prompts import PROMPT_DOMAINS, write_prompts

    domain = path.removeprefix("demo/")
    if domain not in PROMPT_DOMAINS:
        close = nearest(domain, PROMPT_DOMAINS)
        known = ", ".join(f"demo/{name}" for name in PROMPT_DOMAINS)
        mend = f"Did you mean `demo/{close}`?" if close else f"There are: {known}"
        raise InputError("there is no such demo dataset", source=path, mend=mend)
    return str(write_prompts(folder)[domain])


class _FileSource:
    check_start = staticmethod(require_text)

    def __init__(self, name: str, path: str | None = None) -> None:
        self.name = name
        """As the spec has it, for errors."""
        self.path = path or name

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file's bytes, unpacked; whatever goes wrong while it is open is an InputError."""
        try:
            with self._raw() as raw:
                is_packed = self.path.lower().endswith(".gz")
                file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_packed else raw
                self.check_start(file, self.name)
                yield file
        except FileNotFoundError as error:
            # A server that does not answer is told as a file that is not there.
            cause = error.__cause__ if "://" in self.path else None
            problem = f"cannot be read: {cause}" if cause else "there is no such file"
            mend = proxy_words(self.path, error).strip() or None
            raise InputError(problem, source=self.name, mend=mend) from error
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or error
            mend = proxy_words(self.path, error).strip() or None
            raise InputError(f"cannot be read: {reason}", source=self.name, mend=mend) from error

    def _raw(self) -> IO[bytes]:
        if "://" not in self.path:
            return Path(self.path).expanduser().open("rb")
        import fsspec

        try:
            return cast(IO[bytes], fsspec.open(self.path, "rb", **proxy_options(self.path)).open())
        except ImportError as error:
            mend = "Install `optrial[s3]`" if self.path.startswith(("s3:", "gs:")) else None
            raise InputError(str(error), source=self.name, mend=mend) from error
        except ValueError as error:
            raise InputError(str(error), source=self.name) from error

    def empty(self) -> InputError:
        return InputError("the dataset is empty: it has no rows", source=self.name)


class JsonlSource(_FileSource):
    """A file of one JSON object per line."""

    _whole: frozenset[str] = frozenset()
    """Columns whose numbers are all whole."""

    def columns(self) -> list[str]:
        found: dict[str, None] = {}
        first_error, has_rows = None, False
        parted: set[str] = set()
        self._whole = frozenset()
        for record in self.records(()):
            if record.values is None:
                first_error = first_error or record.error
            else:
                has_rows = True
                found.update(dict.fromkeys(record.values))
                parted |= {name for name, each in record.values.items() if is_parted(each)}
        self._whole = frozenset(found) - parted
        if has_rows:
            return list(found)
        if first_error is None:
            raise self.empty()
        raise InputError(
            f"no line is a JSON object; {first_error}",
            source=self.name,
            mend="Write one JSON object per line",
        )

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        with self.open() as file:
            for record in read_lines(file):
                yield record._replace(values=as_they_were(record.values, self._whole))


class CsvSource(_FileSource):
    """A CSV file with a header. Every cell is text; an empty one is null."""

    _floats: frozenset[str] | None = None

    def columns(self) -> list[str]:
        rows = self._rows()
        header = next(rows, None)
        if header is None or next(rows, None) is None:
            raise self.empty()
        names = header[1]
        if names[0].lstrip().startswith("{"):
            raise InputError(
                "it holds JSON, not cells between commas", source=self.name, mend="Name it .jsonl"
            )
        if len(names) == 1:
            for separator, shown in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
                if separator in names[0]:
                    raise InputError(
                        f"the cells are separated by {shown}, and commas are read",
                        source=self.name,
                        mend="Write it with commas, or as JSON lines",
                    )
        return _require_unique(names, self.name)

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        rows = self._rows()
        _, names = next(rows)
        floats = self._written_as_floats(names)
        for line, cells in rows:
            if len(cells) == len(names):
                values = {
                    name: (cell.removesuffix(".0") if name in floats else cell) or None
                    for name, cell in zip(names, cells, strict=True)
                }
                yield Record("line", line, values)
            else:
                problem = f"line {line}: expected {len(names)} cells, got {len(cells)}"
                yield Record("line", line, None, problem)

    def _written_as_floats(self, names: Sequence[str]) -> frozenset[str]:
        """Columns of whole numbers, one of them missing, which pandas writes as 1.0, 2.0 and none.

        Where none is missing it writes 1 and 2, so that 1.0 is what somebody meant.
        """
        if self._floats is None:
            whole, lacking = set(names), set()
            for _, cells in islice(self._rows(), 1, None):
                if len(cells) != len(names):
                    continue
                lacking |= {name for name, cell in zip(names, cells, strict=True) if not cell}
                whole -= {
                    name
                    for name, cell in zip(names, cells, strict=True)
                    if name in whole and cell and not _WHOLE_FLOAT.fullmatch(cell)
                }
                if not whole:
                    break
            self._floats = frozenset(whole & lacking)
        return self._floats

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows that are not blank, each with the line where it ends."""
        # The module's limit of 128 KiB per cell is shorter than prompts may be.
        csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))
        with self.open() as file:
            # Bytes that are not UTF-8 become lone surrogates, which make their row an error row.
            text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
            reader = csv.reader(text, strict=True)
            try:
                for cells in reader:
                    if cells:
                        yield reader.line_num, cells
            except csv.Error as error:
                problem = f"line {reader.line_num}: not valid CSV: {error}"
                raise InputError(problem, source=self.name) from error


class ParquetSource(_FileSource):
    """A Parquet file, read batch by batch."""

    check_start = staticmethod(require_parquet)

    def columns(self) -> list[str]:
        with self._parquet() as file:
            if file.metadata.num_rows == 0:
                raise self.empty()
            return _require_unique(file.schema_arrow.names, self.name)

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        # pyarrow takes a dot in a name for a path into a struct.
        chosen = None if any("." in name for name in columns) else list(columns)
        with self._parquet() as file:
            whole = self._whole(file, columns)
            number = 0
            for batch in file.iter_batches(batch_size=_rows_at_once(file), columns=chosen):
                for values in batch.to_pylist():
                    number += 1
                    yield Record("row", number, as_they_were(values, whole))

    def _whole(self, file: Any, columns: Sequence[str]) -> frozenset[str]:
        """Columns of floating point of which all numbers are whole: pandas makes such ones of whole
        numbers where one is missing."""
        import pyarrow as pa

        floats = [
            field.name
            for field in file.schema_arrow
            if field.name in columns and pa.types.is_floating(field.type) and "." not in field.name
        ]
        parted: set[str] = set()
        if floats:
            for batch in file.iter_batches(columns=floats):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    if any(map(is_parted, column.to_pylist())):
                        parted.add(name)
        return frozenset(floats) - parted

    @contextmanager
    def _parquet(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.open() as raw:
            try:
                with pq.ParquetFile(raw) as file:
                    yield file
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise InputError(f"not valid Parquet: {error}", source=self.name) from error


def _require_unique(names: Sequence[str], source: str) -> list[str]:
    """InputError where two columns have one name: which of them is meant, nobody can say."""
    for name in names:
        if list(names).count(name) > 1:
            raise InputError(
                f"two columns are named `{name}`", source=source, mend="Rename one of them"
            )
    return list(names)


def _rows_at_once(file: Any) -> int:
    """Few of wide ones: a batch of nested values must stay below what Arrow can index (2 GiB)."""
    meta = file.metadata
    sizes = [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
    widest = max(
        (size / max(1, meta.row_group(i).num_rows) for i, size in enumerate(sizes)), default=0.0
    )
    return max(1, min(1024, int(_BATCH_BYTES / max(1.0, widest))))


class HubSource:
    """A dataset on the Hugging Face hub. Its code, if it has any, is never run."""

    def __init__(self, dataset: DatasetSpec) -> None:
        self.name = dataset.path
        with self._errors():
            self.rows = self._load(dataset)

    def _load(self, dataset: DatasetSpec) -> Any:
        import datasets

        arguments = {"path": dataset.path, "name": dataset.subset, "revision": dataset.revision}
        is_streamed = dataset.limit is not None
        if not is_streamed:
            info = datasets.load_dataset_builder(**arguments).info
            is_streamed = (info.dataset_size or 0) > STREAM_ABOVE_BYTES
        loaded = datasets.load_dataset(**arguments, split=dataset.split, streaming=is_streamed)
        if not isinstance(loaded, dict):
            return loaded
        if len(loaded) == 1:
            return next(iter(loaded.values()))
        mend = f"Set `split` to one of: {', '.join(map(str, loaded))}"
        raise InputError(
            "the dataset has several splits", source=self.name, field="split", mend=mend
        )

    def columns(self) -> list[str]:
        with self._errors():
            first = next(iter(self.rows), None)
            if first is None:
                raise InputError("the dataset is empty: it has no rows", source=self.name)
            return list(self.rows.column_names or first)

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        # Columns that nobody asked for may be images, which are slow to decode.
        with self._errors():
            for number, values in enumerate(self.rows.select_columns(list(columns)), start=1):
                yield Record("row", number, dict(values))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            # Hub, network, file system and Arrow each raise kinds of their own.
            text = " ".join(str(error).split()) or type(error).__name__
            mend = _FORMATS if "doesn't exist" in text else None
            if "scripts are no longer supported" in text:
                mend = "Name a revision of it that holds Parquet, such as refs/convert/parquet"
            mend = mend or proxy_words(hub_address(), error).strip() or None
            problem = f"cannot be loaded from the hub: {text[:500]}"
            raise InputError(problem, source=self.name, mend=mend) from error
