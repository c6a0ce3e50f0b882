"""Whether the bytes of a file are what was committed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.receipts import Seal
from cluster.storage import LocalStore, ObjectStore


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
