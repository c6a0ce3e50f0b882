"""`Prefix`: a prompt's keys and values, taken from a slot once and given to many."""

from __future__ import annotations

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

    @property
    def num_bytes(self) -> int:
        """Of its own memory."""
        if self.shared is not None:
            return self.shared.num_bytes
        return sum(t.numel() * t.element_size() for pair in self.states for t in pair)

    @property
    def unmapped_bytes(self) -> int:
        """What no cache counts."""
        return 0 if self.shared is not None and self.shared.is_mapped else self.num_bytes

    def close(self) -> None:
        """Forget it; its memory goes as soon as no slot shares it."""
        self.states = []
        if self.shared is not None:
            self.shared.close()
