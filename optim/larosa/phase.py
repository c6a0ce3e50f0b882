"""Whether the tokens of a forward pass are generated ones or a prompt's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor


class Phase:
    """Shared by all modules of one model; says which forward passes are sparse.

    Left alone, a pass over one token per sequence is decoding and any other a prefill, which is
    right for `generate` without speculation. Who knows better says so by `of`.
    """

    def __init__(self, *, sparsify_prefill: bool) -> None:
        self.sparsify_prefill = sparsify_prefill
        self.stated: Literal["prefill", "decode"] | None = None

    @contextmanager
    def of(self, stated: Literal["prefill", "decode"]) -> Iterator[None]:
        before, self.stated = self.stated, stated
        try:
            yield
        finally:
            self.stated = before

    def is_sparse(self, x_BTD: Tensor) -> bool:
        """Whether a pass with these activations [batch, tokens, channels] is masked."""
        if self.sparsify_prefill:
            return True
        if self.stated is not None:
            return self.stated == "decode"
        return x_BTD.shape[-2] == 1
