"""`Prefix`: a prompt's keys and values, taken from a slot once and given to many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Sharing = Literal["mapped", "copied"]
"""How a slot got a prompt: its memory is shared with others, or it has a copy."""


class SharedStates(Protocol):
    """Memory of a cache that several slots can share."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def is_mapped(self) -> bool:
        """Whether a cache counts it among its own bytes."""
        ...

    def close(self) -> None: ...


@dataclass
class Prefix:
    """What `SlotCache.freeze` gives and `SlotCache.fork` takes, with any cache of one model."""

    num_tokens: int
    states: list[tuple[Tensor, Tensor]]
    """Keys and values per layer, [1, H, P, D]; of sliding layers the last window-1 tokens."""
    logits_1V: Tensor | None = None
    """Logits after the last token: whoever forks it has no forward of its own to get them."""
    shared: SharedStates | None = None
    """Where the states of full-attention layers lie, in a cache that can share them."""
    num_copied_bytes: int | None = None
    """Of states that lie elsewhere; None for all of them."""

    @property
    def num_bytes(self) -> int:
        """Of its own memory."""
        return self._copied_bytes + (self.shared.num_bytes if self.shared is not None else 0)

    @property
    def unmapped_bytes(self) -> int:
        """What no cache counts."""
        if self.shared is not None and self.shared.is_mapped:
            return self._copied_bytes
        return self.num_bytes

    @property
    def _copied_bytes(self) -> int:
        return bytes_of(self.states) if self.num_copied_bytes is None else self.num_copied_bytes

    def close(self) -> None:
        """Forget it; its memory goes as soon as no slot shares it."""
        self.states = []
        if self.shared is not None:
            self.shared.close()


def bytes_of(states: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Bytes of keys and values."""
    return sum(t.numel() * t.element_size() for pair in states for t in pair)
