"""An adapted vocabulary on ids: base tokens that are gone are split, n-grams become new tokens.

After Alg. 2 of Nakash et al., "AdaptiVocab: Enhancing LLM Efficiency in Focused Domains through
Lightweight Vocabulary Adaptation" (2025, arXiv 2503.19693), whose greedy cover is kept beside one
with the fewest tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optim.errors import InputError

Method = Literal["dp", "greedy"]

_Id = Annotated[int, Field(ge=0, strict=True)]
_Matches = tuple[tuple[int, int], ...]
"""(length, new id) of every new token that starts at a position, the longest last."""
_Node = tuple[_Matches, "dict[int, _Node] | None"]
_MEND = "Prepare the vocabulary again"


class Patches(BaseModel):
    """`patches.json`: what an adapted vocabulary changes in the base's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    method: Method = "dp"
    """How a text is covered: with the fewest tokens, or by the longest from left to right."""
    removed: dict[Annotated[int, Field(ge=0)], Annotated[tuple[_Id, ...], Field(min_length=1)]]
    """Base id -> the kept base ids that it is split into."""
    new: dict[Annotated[int, Field(ge=0)], Annotated[tuple[_Id, ...], Field(min_length=2)]]
    """New id -> the kept base ids that it stands for."""

    @classmethod
    def read(cls, file: str | Path) -> Patches:
        """Raises InputError with the file and the field where the file is no sound one."""
        try:
            return cls.model_validate_json(Path(file).read_bytes())
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror or error}", source=file, mend=_MEND
            ) from error
        except ValidationError as error:
            raise _input_error(error, file) from error

    @classmethod
    def checked(cls, **fields: Any) -> Patches:
        """Raises InputError with the field where one is not sound."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise _input_error(error) from error

    def to_json(self) -> str:
        """One line per token, sorted by id: equal patches give equal bytes."""
        parts = {name: _lines(getattr(self, name)) for name in ("new", "removed")}
        return (
            f'{{\n "format": {self.format},\n "method": "{self.method}",\n'
            f' "new": {parts["new"]},\n "removed": {parts["removed"]}\n}}\n'
        )


def _input_error(error: ValidationError, source: object | None = None) -> InputError:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or None
    return InputError(first["msg"], source=source, field=field, mend=_MEND)


def _lines(table: Mapping[int, Sequence[int]]) -> str:
    rows = [f'  "{token}": {list(table[token])}' for token in sorted(table)]
    return "{\n" + ",\n".join(rows) + "\n }" if rows else "{}"


class Segmenter:
    """Base ids to adapted ids and back, in time linear in the number of ids.

    `method` "dp" gives the fewest tokens; of several such covers the one whose first token is the
    longest, then its second, and so on. "greedy" takes, from left to right, the longest new token
    that fits (Alg. 2, step 3). `barriers` are ids that no new token may contain: a new token with
    one in it is never made, only expanded.

    Raises InputError (with a field such as `new.32000`) where a new token is shorter than two ids
    or stands for the same ids as another, and where a split or an expansion holds an id that is
    itself removed or new.
    """

    def __init__(
        self,
        new: Mapping[int, tuple[int, ...]],
        removed: Mapping[int, tuple[int, ...]] | None = None,
        method: Method = "dp",
        barriers: Collection[int] = (),
    ) -> None:
        removed = removed or {}
        _check(new, removed)
        self._removed = dict(removed)
        self._expansions = self._removed | dict(new)
        self._pairs = _trie(new, frozenset(barriers))
        self._cover = {"dp": self._fewest, "greedy": self._longest_first}[method]
        self.longest = max(map(len, new.values()), default=1)
        """Base tokens in the longest new token; 1 where there is none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Segmenter:
        return self  # Nothing of it ever changes, and the trie is large.

    def segment(self, ids: Sequence[int]) -> list[int]:
        """Base ids to adapted ones: removed tokens are split, then n-grams become new tokens."""
        return self.cover(self.decompose(ids))

    def decompose(self, ids: Sequence[int]) -> list[int]:
        """Base ids with every removed one split."""
        return _replaced(ids, self._removed)

    def cover(self, ids: list[int]) -> list[int]:
        """Kept base ids with n-grams replaced by new tokens."""
        return self._cover(ids) if self._pairs else list(ids)

    def expand(self, ids: Sequence[int]) -> list[int]:
        """Adapted ids, in any order, to the kept base ids that they stand for.

        A removed id that no new token uses is split; an id that is not known stays as it is.
        """
        return _replaced(ids, self._expansions)

    def base_length(self, token: int) -> int:
        """Of how many kept base tokens an adapted id stands."""
        expansion = self._expansions.get(token)
        return 1 if expansion is None else len(expansion)

    def pieces(self, token: int) -> tuple[int, ...]:
        """The kept base ids that a base id is split into: itself, unless it is removed."""
        return self._removed.get(token, (token,))

    def _longest_first(self, ids: list[int]) -> list[int]:
        made: list[int] = []
        done, num_ids = 0, len(ids)
        for at, node in enumerate(map(self._pairs.get, zip(ids, islice(ids, 1, None)))):  # noqa: B905
            if node is None or at < done:
                continue
            found, more = node
            reach = at + 2
            while more is not None and reach < num_ids:
                deeper = more.get(ids[reach])
                if deeper is None:
                    break
                found, more = deeper
                reach += 1
            if found:
                if done < at:
                    made += ids[done:at]
                length, token = found[-1]
                made.append(token)
                done = at + length
        made += ids[done:]
        return made

    def _fewest(self, ids: list[int]) -> list[int]:
        made: list[int] = []
        end, num_ids = 0, len(ids)
        # Matches that overlap are an island, which ends at `end` and is solved by itself: between
        # islands there is nothing to choose.
        starts: list[int] = []
        matches: list[_Matches] = []
        for at, node in enumerate(map(self._pairs.get, zip(ids, islice(ids, 1, None)))):  # noqa: B905
            if node is None:
                continue
            found, more = node
            reach = at + 2
            while more is not None and reach < num_ids:
                deeper = more.get(ids[reach])
                if deeper is None:
                    break
                found, more = deeper
                reach += 1
            if not found:
                continue
            if at < end:
                starts.append(at)
                matches.append(found)
                reach = at + found[-1][0]
                if reach > end:
                    end = reach
                continue
            if len(starts) > 1:
                _solve(starts, matches, ids, end, made)
            elif starts:
                made.append(matches[0][-1][1])
            if end < at:
                made += ids[end:at]
            starts, matches = [at], [found]
            end = at + found[-1][0]
        if starts:
            _solve(starts, matches, ids, end, made)
        made += ids[end:]
        return made


def _solve(
    starts: list[int], matches: list[_Matches], ids: list[int], end: int, made: list[int]
) -> None:
    """Appends the best cover of ids[start:end], where `start` is the island's first match."""
    start = starts[0]
    length, token = matches[0][-1]
    if length == end - start:  # one token covers all of it
        made.append(token)
        return
    if len(starts) == 2:
        _solve_two(starts, matches, ids, end, made)
        return
    beyond = end - start
    saved = [0] * (beyond + 1)  # by position: most tokens saved from there to the end
    picks: list[tuple[int, int] | None] = []
    for at, found in zip(reversed(starts), reversed(matches)):  # noqa: B905
        here = at - start
        best = saved[beyond]
        for between in range(here + 1, beyond):
            saved[between] = best
        pick = None
        for match in found:
            value = saved[here + match[0]] + match[0]
            if value > best:  # a match saves one less than its length: ties go to the longest
                best, pick = value - 1, match
        saved[here] = best
        picks.append(pick)
        beyond = here
    done = start
    for at, pick in zip(starts, reversed(picks)):  # noqa: B905
        if pick is not None and at >= done:
            if done < at:
                made += ids[done:at]
            made.append(pick[1])
            done = at + pick[0]
    if done < end:
        made += ids[done:end]


def _solve_two(
    starts: list[int], matches: list[_Matches], ids: list[int], end: int, made: list[int]
) -> None:
    """The same for the most frequent island that leaves a choice: the first match's longest token,
    which reaches into the second's, or the second's longest behind what of the first still fits."""
    start, second = starts
    length, token = matches[0][-1]
    size, last = matches[1][-1]
    before: tuple[int, int] | None = None
    for match in matches[0]:
        if match[0] > second - start:
            break
        before = match
    if length >= size + (before[0] - 1 if before else 0):
        made.append(token)
        made += ids[start + length : end]
        return
    if before:
        made.append(before[1])
        start += before[0]
    made += ids[start:second]
    made.append(last)


def _replaced(ids: Sequence[int], table: Mapping[int, tuple[int, ...]]) -> list[int]:
    places = [at for at, token in enumerate(ids) if token in table]
    if not places:
        return list(ids)
    made: list[int] = []
    done = 0
    for at in places:
        made += ids[done:at]
        made += table[ids[at]]
        done = at + 1
    made += ids[done:]
    return made


def _trie(
    new: Mapping[int, tuple[int, ...]], barriers: frozenset[int]
) -> dict[tuple[int, int], _Node]:
    """By first pair, then by one id a level: most pairs of a text start no new token."""
    pairs: dict[tuple[int, int], Any] = {}
    for token, expansion in sorted(new.items(), key=lambda item: len(item[1])):
        if not barriers.isdisjoint(expansion):
            continue
        level: dict[Any, Any] = pairs
        found: _Matches = ()
        for depth, key in enumerate(chain([expansion[:2]], expansion[2:]), 2):
            # Shorter tokens were entered before: what they added here is complete.
            found, more = level.get(key, (found, None))
            if depth == len(expansion):
                level[key] = ((*found, (depth, token)), more)
            else:
                more = {} if more is None else more
                level[key] = (found, more)
                level = more
    return pairs


def _check(new: Mapping[int, tuple[int, ...]], removed: Mapping[int, tuple[int, ...]]) -> None:
    gone = removed.keys() | new.keys()
    for name, table in (("removed", removed), ("new", new)):
        for token, parts in table.items():
            field = f"{name}.{token}"
            if len(parts) < (2 if table is new else 1):
                raise InputError("stands for too few ids", field=field, mend=_MEND)
            if not gone.isdisjoint(parts):
                bad = next(part for part in parts if part in gone)
                raise InputError(f"holds {bad}, which is not kept", field=field, mend=_MEND)
    seen: dict[tuple[int, ...], int] = {}
    for token, parts in new.items():
        if seen.setdefault(tuple(parts), token) != token:
            raise InputError(
                f"stands for the same ids as {seen[tuple(parts)]}", field=f"new.{token}", mend=_MEND
            )
