"""`VAttention`: the optimisation that a trial names."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from optim.cache.slot_cache import layer_windows
from optim.model import LanguageModel
from optim.vattention.new_arena import new_arena
from optim.vattention.settings import Settings
from optim.vattention.slot_cache import VAttentionSlotCache

if TYPE_CHECKING:
    from optim.names import Stage
    from optim.optimization import Preparation


class VAttention(Settings):
    """Keys and values in contiguous virtual memory, committed as sequences grow.

    Exact: it gives the tokens of the baseline's cache. What it changes is memory.
    """

    name: ClassVar[str] = "vattention"
    stage: ClassVar[Stage] = "cache"
    preparation: ClassVar[type[Preparation] | None] = None
    places: ClassVar[frozenset[str]] = frozenset()

    def apply(self, lm: LanguageModel) -> LanguageModel:
        """The same model with a cache of this kind.

        Raises InputError where the device has no such memory, or the model's layers keep no keys
        and values per token.
        """
        layer_windows(lm.model)
        new_arena(self, lm.device).close()
        return replace(lm, new_cache=functools.partial(VAttentionSlotCache, settings=self))

    def content(self) -> str:
        """Nothing: it needs no artifact."""
        return ""
