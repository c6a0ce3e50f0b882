"""The texts of a preparation: what chooses, what decides between choices, and what judges."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from optim.errors import InputError

LEAST_TEXTS = 3


@dataclass(frozen=True)
class Corpus:
    """Texts, parted whole, by the hash of their own content."""

    train: list[str]
    """What new tokens are chosen on, and what the models are tuned on."""
    dev: list[str]
    """What is decided on: the longest token, the kind of tokenizer."""
    held_out: list[str]
    """What no decision saw."""
    sha256: str
    """Over all texts, in order."""
    num_bytes: int
    is_cut: bool
    """Whether there was more than was read."""


def gather(
    texts: Iterable[str],
    num_bytes: int,
    share: float,
    *,
    field: str = "--data",
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Corpus:
    """Read texts up to `num_bytes` of UTF-8 and part them.

    `share` of the texts, one at least, go to each of dev and held-out. Equal texts count once: else
    a text could judge itself. Raises InputError where there are fewer than three texts.
    """
    found: dict[bytes, str] = {}
    size, is_cut, digest = 0, False, hashlib.sha256()
    for text in texts:
        data = text.encode()
        if not data.strip():
            continue
        if size + len(data) > num_bytes and found:
            is_cut = True
            break
        size += len(data)
        own = hashlib.sha256(data).digest()
        digest.update(own)
        found.setdefault(own, text)
    if len(found) < LEAST_TEXTS:
        what = "is empty" if not found else f"has only {len(found)} different texts"
        raise InputError(
            f"the corpus {what}",
            field=field,
            mend=f"Give {LEAST_TEXTS} texts or more: one chooses, one decides, one judges",
        )
    if is_cut:
        on_stage(f"the corpus is longer than {num_bytes} bytes: the rest is left out")
    by_hash = sorted(found)
    num_apart = max(1, round(share * len(by_hash)))
    num_apart = min(num_apart, (len(by_hash) - 1) // 2)
    dev, held_out = frozenset(by_hash[:num_apart]), frozenset(by_hash[num_apart : 2 * num_apart])
    parts: dict[str, list[str]] = {"train": [], "dev": [], "held_out": []}
    for own, text in found.items():
        part = "dev" if own in dev else "held_out" if own in held_out else "train"
        parts[part].append(text)
    return Corpus(**parts, sha256=digest.hexdigest(), num_bytes=size, is_cut=is_cut)
