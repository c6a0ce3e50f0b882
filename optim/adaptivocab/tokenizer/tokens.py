"""`tokens.json`: which tokens are new in an adapted vocabulary, and which are gone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary, merged
from optim.model import Vocabulary

TOKENS = "tokens.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NewToken(_Frozen):
    """A token that the base does not have."""

    id: int
    name: str
    """Its token string."""
    parts: tuple[int, ...]
    """The base ids that its rows were made of, all of them kept."""
    base_length: int
    """Tokens that the base's own tokenizer has for its text."""
    key: int
    """What names its noise in sampling: 63 bits of a hash of its bytes, above every id."""


class GoneToken(_Frozen):
    """A token that made room for another."""

    id: int
    name: str
    parts: tuple[int, ...]
    """What stands for it; empty where no text was ever encoded to it."""


class Tokens(_Frozen):
    """What an adapted vocabulary changes."""

    new: tuple[NewToken, ...]
    """The most useful first."""
    removed: tuple[GoneToken, ...] = ()

    def vocabulary(self, num_rows: int) -> Vocabulary:
        """Keys and base lengths for a model with so many rows."""
        keys_V = torch.arange(num_rows)
        lengths_V = torch.ones(num_rows, dtype=torch.int32)
        ids = torch.tensor([token.id for token in self.new], dtype=torch.long)
        keys_V[ids] = torch.tensor([token.key for token in self.new], dtype=torch.long)
        lengths_V[ids] = torch.tensor([token.base_length for token in self.new]).int()
        return Vocabulary(keys_V, lengths_V)

    def expansions(self) -> dict[int, tuple[int, ...]]:
        """New id -> the base ids that it stands for."""
        return {token.id: token.parts for token in self.new}

    def write(self, folder: Path) -> None:
        """Write the file, a line per token."""
        lines = [
            f'"{field}": [\n'
            + ",\n".join(token.model_dump_json() for token in getattr(self, field))
            + "\n]"
            for field in ("new", "removed")
        ]
        (folder / TOKENS).write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def table(
    base: BaseVocabulary,
    ids: Sequence[int],
    names: Sequence[str],
    expansions: Sequence[tuple[int, ...]],
    removed: Mapping[int, tuple[int, ...]],
    gone: Sequence[int],
) -> Tokens:
    """The table of a selection; ids, names and expansions are of the new tokens, in order."""
    contents = [base.text(parts) for parts in expansions]
    return Tokens(
        new=tuple(
            NewToken(id=number, name=name, parts=parts, base_length=length, key=_key(content))
            for number, name, parts, content, length in zip(
                ids,
                names,
                expansions,
                contents,
                _base_lengths(base, expansions),
                strict=True,
            )
        ),
        removed=tuple(
            GoneToken(id=number, name=base.tokens[number], parts=removed.get(number, ()))
            for number in gone
        ),
    )


def _key(content: bytes) -> int:
    hashed = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(hashed) & (1 << 62) - 1 | 1 << 62


def _base_lengths(base: BaseVocabulary, expansions: Sequence[tuple[int, ...]]) -> list[int]:
    """Tokens of the base for each: its parts, with removed tokens back in their place."""
    ranks = {
        (left, right): (rank, whole)
        for rank, (left, right, whole) in reversed(list(enumerate(base.merges)))
    }
    return [len(merged(parts, ranks)) for parts in expansions]
