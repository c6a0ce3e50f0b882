"""`VAttentionCache`: the arena behind plain `model.generate(past_key_values=...)`.

```python
with VAttentionCache(model.config) as cache:
    model.generate(**inputs, past_key_values=cache)
```
"""

from __future__ import annotations

import copy
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from optim.cache.slot_cache import KVAccounts
from optim.models.window import context_length
from optim.vattention.arena.arena import Arena
from optim.vattention.cache_layer import ArenaLayer, Rows
from optim.vattention.new_arena import new_arena
from optim.vattention.settings import Settings

DEFAULT_LENGTH = 4096
"""Tokens that a row's range is first reserved for where the model names no context length."""


class VAttentionCache(Cache):  # type: ignore[misc]
    """A transformers cache whose full-attention layers live in contiguous virtual memory.

    Layers of other kinds are transformers' own. Beams, crops, several turns and changes of the
    number of rows work as with `DynamicCache`, with the same logits, bit for bit with base pages.
    `max_length` bounds a row in tokens (KVMemoryError beyond); without it a row's range is that of
    the model's context length, and is moved to a larger one at need. `device` is where the model
    is: it makes the arena, and with it the error where there is none, at once instead of with the
    first tokens; an `arena` that is given is this cache's alone. The memory goes with the last
    reference to the cache and to what `update` returned, or with `close`.

    After a KVMemoryError `reset` gives a cache that can be used again. It keeps no gradients, is
    not offloaded, pickled or compiled, and a copy of it (`copy.deepcopy`) has memory of its own.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        max_length: int | None = None,
        settings: Settings | None = None,
        device: torch.device | str | None = None,
        arena: Arena | None = None,
    ) -> None:
        self._config, self._max_length = config, max_length
        self._settings = chosen = settings or Settings()
        length = max_length or context_length(config) or DEFAULT_LENGTH
        self._rows = Rows(lambda device: arena or new_arena(chosen, device), chosen, max_length)
        if arena is None and device is not None:
            self._rows.arena = new_arena(chosen, torch.device(device))
        super().__init__(
            layers=[
                ArenaLayer(self._rows, length) if type(layer) is DynamicLayer else layer
                for layer in DynamicCache(config=config).layers
            ]
        )
        self._note_others()

    def _note_others(self) -> None:
        self._rows.others = [x for x in self.layers if not isinstance(x, ArenaLayer)]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove so many tokens, given as a negative number; their pages are released."""
        super().crop(tokens_to_remove)
        self._rows.trim()

    def reset(self) -> None:
        """Forget everything and give the memory back; the cache can be filled again."""
        self._rows.reset()

    @torch.no_grad()
    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i hold what row beam_idx[i] held."""
        self._rows.select(beam_idx)
        for layer in self._rows.others:
            layer.reorder_cache(beam_idx)

    @torch.no_grad()
    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row so many times; all is reset where that raises KVMemoryError."""
        if self._rows.pages is not None:
            rows = torch.arange(self._rows.pages.num_rows)
            self._rows.select(rows.repeat_interleave(repeats))
        for layer in self._rows.others:
            layer.batch_repeat_interleave(repeats)

    @torch.no_grad()
    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order, given as indices or a mask; may raise as repeating."""
        if self._rows.pages is not None:
            rows = torch.arange(self._rows.pages.num_rows)
            self._rows.select(rows[indices.cpu()])
        for layer in self._rows.others:
            layer.batch_select_indices(indices)

    # --- memory --------------------------------------------------------------------------------

    def accounts(self) -> KVAccounts:
        """Bytes of keys and values, those of transformers' own layers included.

        Those hold whole tensors of which they may use a part, after a long prompt for example.
        """
        tensors = [
            tensor
            for layer in self._rows.others
            for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
            if tensor is not None
        ]
        used = sum(x.numel() * x.element_size() for x in tensors)
        held = sum(x.untyped_storage().nbytes() for x in tensors)
        pages, arena = self._rows.pages, self._rows.arena
        if pages is not None:
            used += sum(x.length * x.bytes_per_token for x in self._rows.layers) * pages.num_rows
            pages.join()
        if arena is None:
            return KVAccounts(used, held, held)
        # Of the arena, which keeps what is pooled, and what it could not unmap when it was closed.
        committed = arena.committed_bytes + arena.pooled_bytes
        return KVAccounts(used, held + committed, held + arena.reserved_bytes)

    def audit(self) -> int:
        """Committed bytes of the arena as the system counts them."""
        if self._rows.pages is not None:
            self._rows.pages.join()
        return 0 if self._rows.arena is None else self._rows.arena.audit()

    def close(self) -> None:
        """Forget everything and unmap it. To be repeated after a LiveTensorError.

        Raises LiveTensorError while somebody looks at what `update` returned; that stays readable.
        """
        self._rows.forget()
        if self._rows.pages is not None:
            self._rows.pages.join()
            self._rows.pages = None
        if self._rows.arena is not None:
            self._rows.arena.close()
            self._rows.arena = None

    def __enter__(self) -> VAttentionCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:  # frames of the error may still look at tensors
            self.reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> VAttentionCache:
        """A cache of its own, in an arena of its own, with the same tokens."""
        made = VAttentionCache(self._config, max_length=self._max_length, settings=self._settings)
        memo[id(self)] = made
        with torch.no_grad():
            for index, layer in enumerate(self.layers):
                if not isinstance(layer, ArenaLayer):
                    made.layers[index] = copy.deepcopy(layer, memo)
                elif layer.length:
                    made.layers[index].update(layer.keys, layer.values)
        made._note_others()
        return made

    def __reduce__(self) -> Any:
        raise TypeError("a vattention cache is memory of this process and cannot be pickled")
