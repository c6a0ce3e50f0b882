"""How many positions a model knows, by its configuration.

Authors write it down in several ways. Scaled positions of YaRN reach `factor` times the original
window, linear ones `factor` times the stated one; those of Llama 3 and LongRoPE state the whole
window (as vLLM reads them, `_get_and_verify_max_len`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_NAMES = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length",
    "n_ctx",
)  # fmt: skip
_STATED_WHOLE = frozenset({"default", "llama3", "mrope", "proportional"})
_CHANGING = {"longrope": "LongRoPE", "su": "LongRoPE", "dynamic": "dynamic RoPE"}
# Gemma 3 states its window as scaled, beside a linear factor.
_SCALED_ALREADY = ("gemma3",)


def context_length(config: Any) -> int | None:
    """Prompt and completion together; None where the model states no limit.

    Of LongRoPE and dynamic RoPE it is the original window: beyond it the factors of all positions
    are others, and keys that are kept would have to be made anew, for every sequence at its own
    time.
    """
    text = config.get_text_config(decoder=True)
    stated = next((v for n in _NAMES if (v := getattr(text, n, None)) is not None), None)
    if not isinstance(stated, int) or stated <= 0:
        return None  # XLNet says -1
    lengths = [_scaled(text, stated, rope) for rope in _ropes(text)]
    return min(lengths, default=stated)


def changing_rope(config: Any) -> str | None:
    """What makes the window smaller than the stated one, for the reason above."""
    kinds = {_kind(rope) for rope in _ropes(config.get_text_config(decoder=True))}
    return next((_CHANGING[kind] for kind in sorted(kinds) if kind in _CHANGING), None)


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """Of all layers, or of each kind of them."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(given, Mapping):
        return
    if any(isinstance(value, Mapping) for value in given.values()):
        yield from (value for value in given.values() if isinstance(value, Mapping))
    else:
        yield given


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _scaled(config: Any, stated: int, rope: Mapping[str, Any]) -> int:
    kind, factor = _kind(rope), rope.get("factor")
    original = rope.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    if kind in ("longrope", "su"):
        return min(stated, int(original)) if original else stated
    if kind == "dynamic":
        return stated
    if kind in _STATED_WHOLE or not factor or config.model_type.startswith(_SCALED_ALREADY):
        return stated
    if kind == "yarn" and original:
        return max(stated, int(original * factor))
    return int(stated * factor)
