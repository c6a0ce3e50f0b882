"""What a file is by its first bytes, so that a wrong one is called by its name."""

from __future__ import annotations

from typing import IO

from optim.errors import InputError

_STARTS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "a zip archive (or a spreadsheet)",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"SQLite format 3": "SQLite",
}
_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_LONGEST = 16


def require_text(file: IO[bytes], name: str) -> None:
    """InputError where a file that should be UTF-8 text starts as something else; else it stands
    at its start again."""
    head = _head(file)
    for start, kind in _STARTS.items():
        if head.startswith(start):
            packed = kind in ("gzip", "zstd", "bzip2", "xz")
            mend = "Unpack it, or name it ….gz" if kind == "gzip" else "Unpack it"
            raise InputError(
                f"this is {kind}, not text",
                source=name,
                mend=mend if packed else "Give text, or name the file by what it is",
            )
    for start, encoding in _ENCODINGS.items():
        if head.startswith(start):
            raise _encoded(encoding, name)
    if head[1::2].count(0) > len(head) // 4 or head[::2].count(0) > len(head) // 4:
        raise _encoded("UTF-16", name)


def require_parquet(file: IO[bytes], name: str) -> None:
    """InputError where a file is no Parquet, and is known for something else."""
    head = _head(file)
    if head.startswith(b"PAR1"):
        return
    kind = next((kind for start, kind in _STARTS.items() if head.startswith(start)), None)
    if kind is not None or head[:1] in (b"{", b"["):
        shown = kind or "JSON"
        raise InputError(
            f"this is {shown}, not Parquet", source=name, mend="Name the file by what it is"
        )


def _encoded(encoding: str, name: str) -> InputError:
    return InputError(
        f"the text is {encoding}, and UTF-8 is read",
        source=name,
        mend=f"Write it anew: iconv -f {encoding} -t UTF-8",
    )


def _head(file: IO[bytes]) -> bytes:
    head = file.read(_LONGEST)
    file.seek(0)
    return head
