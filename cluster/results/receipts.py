"""What a commit leaves beside its part: how many bytes it has, and which.

A receipt says it in its own name, `_receipts/<key>-<bytes>-<sha256>.json`, so that one listing
tells of all parts what they must be, in a bucket too; its content is the same and the rows. Two
writers of one key leave two, and the part is sound where it is as one of them says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage.open_store import LocalStore, ObjectStore
from optim.errors import InputError


def sha256_of(store: LocalStore | ObjectStore, name: str) -> str:
    """Of a file's bytes; a local one is not held in memory."""
    if isinstance(store, LocalStore):
        with open(store.path(name), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(store.read(name)).hexdigest()


def differs(sha256: str, seals: Iterable[Seal]) -> bool:
    """Whether no receipt knows these bytes."""
    return all(seal.sha256 != sha256 for seal in seals)


def page_fault(source: object) -> str | None:
    """What is wrong with a Parquet file by its own page checksums: for files without a receipt.

    `source` is a path or a pyarrow file. Decodes everything, a batch at a time.
    """
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            for _ in file.iter_batches():
                pass
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read: {str(error).splitlines()[0] if str(error) else error!r}"
    return None


RECEIPTS = "_receipts"
_NAME = re.compile(r"_receipts/(?P<key>[^/]+?)-(?P<bytes>\d+)-(?P<sha256>[0-9a-f]{64})\.json")
_OLD_NAME = re.compile(r"_receipts/(?P<key>[^/-]+)\.json")


@dataclass(frozen=True)
class Receipt:
    """What a worker hands back instead of rows."""

    key: str
    rows: int
    num_errors: int
    sha256: str
    completion_tokens: int
    wall_s: float
    is_duplicate: bool = False
    """Another execution had committed the cell first; this one's rows were discarded."""


class Seal(NamedTuple):
    """What a receipt says of a part."""

    num_bytes: int | None
    """None in what older versions wrote."""
    sha256: str


def write_receipt(
    store: LocalStore | ObjectStore, key: str, sha256: str, num_bytes: int, rows: int
) -> None:
    text = json.dumps({"key": key, "rows": rows, "bytes": num_bytes, "sha256": sha256})
    store.replace(f"{RECEIPTS}/{key}-{num_bytes}-{sha256}.json", text.encode())


class Receipts:
    """All receipts of a trial, from one listing."""

    def __init__(self, store: LocalStore | ObjectStore) -> None:
        self.store = store
        self._seals: dict[str, list[Seal]] = defaultdict(list)
        self._old: dict[str, str] = {}
        for entry in store.entries(RECEIPTS):
            if found := _NAME.fullmatch(entry.name):
                seal = Seal(int(found["bytes"]), found["sha256"])
                self._seals[found["key"]].append(seal)
            elif found := _OLD_NAME.fullmatch(entry.name):
                self._old[found["key"]] = entry.name

    def seals(self, key: str) -> list[Seal]:
        """What the receipts of a part say; empty where there is none that can be read."""
        known = self._seals.get(key)
        if known is not None or key not in self._old:
            return known or []
        try:
            told = json.loads(self.store.read(self._old[key]))
            return [Seal(told.get("bytes"), str(told["sha256"]))]
        except InputError:
            raise  # a store that does not answer is no part without a receipt
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return []

    def sizes(self, key: str) -> set[int]:
        """The sizes that the receipts' names give; nothing is read for it."""
        return {seal.num_bytes for seal in self._seals.get(key, ()) if seal.num_bytes is not None}

    def names(self, key: str) -> list[str]:
        """The files of a key's receipts, as they were when the receipts were listed."""
        sealed = [
            f"{RECEIPTS}/{key}-{s.num_bytes}-{s.sha256}.json" for s in self._seals.get(key, ())
        ]
        return sealed + ([self._old[key]] if key in self._old else [])
