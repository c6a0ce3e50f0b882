"""`PrefixStore`: prompts that were prefilled once, for others with the same prompt."""

from __future__ import annotations

from collections.abc import Sequence

from optim.cache.prefix import Prefix
from optim.cache.slot_cache import SlotCache
from optim.errors import SequenceError, SlotLostError


class PrefixStore:
    """Prefixes by their token ids.

    All must come of one set of weights and one way of prefilling (whole, or chunks of one size):
    then a fork holds bit for bit what its own prefill would have given. A store that `keeps` holds
    what it has until `clear`, for the calls to come; any other one only for as long as requests
    that were announced will need it.
    """

    def __init__(self, *, keeps: bool = False, max_bytes: int | None = None) -> None:
        self.keeps = keeps
        self.max_bytes = max_bytes
        self.num_prefills = 0
        """Prompts that were prefilled and put here."""
        self._prefixes: dict[tuple[int, ...], Prefix] = {}
        self._awaited: dict[tuple[int, ...], int] = {}

    def announce(self, ids: Sequence[int]) -> None:
        """A request with this prompt will come."""
        key = tuple(ids)
        self._awaited[key] = self._awaited.get(key, 0) + 1

    def arrived(self, ids: Sequence[int]) -> None:
        """A request that was announced has its prompt, or will never need it."""
        key = tuple(ids)
        self._awaited[key] -= 1
        if not self._awaited[key]:
            del self._awaited[key]
            if not self.keeps and (prefix := self._prefixes.pop(key, None)):
                prefix.close()

    def find(self, ids: Sequence[int]) -> Prefix | None:
        """The prompt's prefix, where it is there."""
        return self._prefixes.get(tuple(ids))

    def offer(self, ids: Sequence[int], cache: SlotCache, slot: int) -> Prefix | None:
        """Freeze a slot that was just prefilled, where its prompt is wanted again and fits."""
        key = tuple(ids)
        wanted = self.keeps or self._awaited.get(key, 0) > 1
        if not wanted or key in self._prefixes or self.is_full:
            return None
        try:
            prefix = cache.freeze(slot)
        except SlotLostError:
            raise
        except SequenceError:  # no memory: the others prefill it themselves, and their rows say so
            return None
        self.num_prefills += 1
        self._prefixes[key] = prefix
        return prefix

    @property
    def is_full(self) -> bool:
        """Whether nothing more is taken in."""
        return self.max_bytes is not None and self.num_bytes >= self.max_bytes

    @property
    def num_bytes(self) -> int:
        """Memory of all prefixes, mapped somewhere or not."""
        return sum(prefix.num_bytes for prefix in self._prefixes.values())

    @property
    def unmapped_bytes(self) -> int:
        """Memory of prefixes that no cache counts among its own."""
        return sum(prefix.unmapped_bytes for prefix in self._prefixes.values())

    def clear(self) -> None:
        """Forget everything; memory goes as soon as no slot shares it."""
        for prefix in self._prefixes.values():
            prefix.close()
        self._prefixes.clear()
        self._awaited.clear()
