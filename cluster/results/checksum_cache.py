"""Files are read for answers only after their bytes were compared with their receipts, once.

DuckDB does not look at page checksums: from flipped bits it makes plausible totals. So each file is
hashed before its first query; after that its size and version (times of change, or ETag) stand for
its bytes. What was found is kept for the process, and for large results in `_verified/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results.files import encode_table
from cluster.results.receipts import Seal, differs, page_fault, sha256_of
from cluster.storage.open_store import Entry, LocalStore, ObjectStore, read_ahead, threads_for
from optim.errors import InputError

VERIFIED = "_verified/files.parquet"
_WORTH_KEEPING_BYTES, _WORTH_KEEPING = 16 << 20, 500
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("num_bytes", pa.int64()),
        ("version", pa.string()),
        ("sha256", pa.string()),
    ]
)
_SEEN: dict[str, dict[str, tuple[int, str, str]]] = {}
"""Of each results folder: name -> size, version and sha256 of what was found sound."""


class Checked:
    """The files of one results folder that were found to be what was committed."""

    def __init__(self, store: LocalStore | ObjectStore) -> None:
        self.store = store
        self._place = store.path("")
        if self._place not in _SEEN:
            _SEEN[self._place] = _stored(store)
        self._seen = _SEEN[self._place]

    def sha256(self, entry: Entry) -> str | None:
        """Of a file that was found sound and has not changed since; else None."""
        found = self._seen.get(entry.name)
        if found is None or found[:2] != (entry.num_bytes, entry.version):
            return None
        return found[2]

    def faults(
        self, entries: Sequence[Entry], seals_of: Callable[[], Mapping[str, Sequence[Seal]]]
    ) -> list[tuple[str, str]]:
        """Name and problem of each file that is not what was committed; hashes what is new.

        `seals_of` gives what the receipts say by file name; it is called where something is new.
        Files without a receipt are decoded, as their page checksums decide.
        """
        new = [entry for entry in entries if self.sha256(entry) is None]
        if not new:
            return []
        seals = seals_of()

        def check(entry: Entry) -> tuple[Entry, str, str | None]:
            return entry, *self._check(entry, seals.get(entry.name, ()))

        problems, num_bytes, count = [], 0, 0
        for entry, sha256, problem in read_ahead(check, new, threads_for(self.store)):
            if problem is not None:
                problems.append((entry.name, problem))
                continue
            self._seen[entry.name] = (entry.num_bytes, entry.version, sha256)
            num_bytes, count = num_bytes + entry.num_bytes, count + 1
        if num_bytes >= _WORTH_KEEPING_BYTES or count >= _WORTH_KEEPING:
            self._keep()
        return problems

    def take_over(self, covered: Iterable[str], written: Mapping[Entry, str]) -> None:
        """Take files as sound that were just written, in the place of those that they cover."""
        for name in covered:
            self._seen.pop(name, None)
        for entry, sha256 in written.items():
            self._seen[entry.name] = (entry.num_bytes, entry.version, sha256)
        self._keep()

    def _check(self, entry: Entry, seals: Sequence[Seal]) -> tuple[str, str | None]:
        try:
            sizes = {seal.num_bytes for seal in seals}
            if sizes and None not in sizes and entry.num_bytes not in sizes:
                return "", f"has {entry.num_bytes:,} bytes, and its receipt says otherwise"
            sha256 = sha256_of(self.store, entry.name)
            if seals:
                return sha256, "its bytes differ from its receipt" if differs(
                    sha256, seals
                ) else None
            if isinstance(self.store, LocalStore):
                return sha256, page_fault(self.store.path(entry.name))
            return sha256, page_fault(pa.BufferReader(self.store.read(entry.name)))
        except FileNotFoundError:
            return "", "is gone since it was listed"
        except OSError as error:
            return "", f"cannot be read: {error.strerror or error}"

    def _keep(self) -> None:
        columns = [
            list(self._seen),
            *(list(column) for column in zip(*self._seen.values(), strict=True)),
        ]
        arrays = [
            pa.array(values, kind) for values, kind in zip(columns, _SCHEMA.types, strict=True)
        ]
        with suppress(OSError, InputError):  # what cannot be written to is hashed by each process
            self.store.replace(VERIFIED, encode_table(pa.table(arrays, schema=_SCHEMA)))


def _stored(store: LocalStore | ObjectStore) -> dict[str, tuple[int, str, str]]:
    try:
        source = pa.BufferReader(store.read(VERIFIED))
        table = pq.read_table(source, schema=_SCHEMA, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return {}
    names, *others = (column.to_pylist() for column in table.columns)
    return dict(zip(names, zip(*others, strict=True), strict=True))


def refuse(
    store: LocalStore | ObjectStore, output: str, problems: Sequence[tuple[str, str]]
) -> None:
    """Raise the InputError that names what is damaged, and how it is mended."""
    if not problems:
        return
    name, problem = problems[0]
    more = f" ({len(problems) - 1} more files are damaged)" if len(problems) > 1 else ""
    raise InputError(
        f"is not what was committed: {problem}{more}",
        source=store.path(name),
        mend=f"Run `optrial verify {output} --repair`, then `optrial evaluate` with the same spec "
        "again: it runs just these cells",
    )
