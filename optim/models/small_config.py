"""A model's own configuration, cut to what a check of its computation needs.

The fewest first layers that hold every kind of layer that the model has, few heads of their own
size, few experts, a small vocabulary; windows and lengths at which positions change are made
short, so that short sequences cross them. What else the configuration says stays as it is.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

log = logging.getLogger(__name__)

VOCABULARY, WINDOW, POSITIONS = 96, 8, 16
_MOST_PARAMETERS = 60_000_000
"""Of a model that could only be cut in depth: more cannot be checked in seconds."""
_STDS = (0.12, 0.06, 0.03, 0.015)
"""Of random weights. Larger than usual, so that logits depend on what came before; yet where scores
are scaled up, attention of large weights is to one token alone."""
_ENOUGH = 0.02

_DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
    "num_decoder_layers", "depth",
)  # fmt: skip
_HEADS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
    "encoder_attention_heads", "attention_heads", "swa_num_attention_heads",
)  # fmt: skip
_KEY_HEADS = (
    "num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "swa_num_key_value_heads",
    "num_global_key_value_heads",
)  # fmt: skip
_FEW_HEADS = 4
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "attention_hidden_size")
_FEED_FORWARD = (
    "intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_ff",
    "moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp",
    "dense_intermediate_size", "ffn_hidden_size", "expert_ffn_hidden_size", "dff", "dim_ff",
)  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "moe_top_k")
_WINDOWS = (
    "sliding_window", "window_size", "attention_window", "local_attention", "attention_window_size",
    "attention_chunk_size", "sliding_window_size", "local_attn_chunk_length",
)  # fmt: skip
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_PLACES = re.compile(r"(idx|index|layer_id|layer_number|seed)$")
"""Attributes that say where a layer is, not what it does."""
_CHANGES = "original_max_position_embeddings"
_CHANGING = ("longrope", "su", "dynamic")
"""Kinds of RoPE whose frequencies depend on how long the sequence is."""


def small_model(config: Any, *, seed: int = 0, trust_remote_code: bool = False) -> PreTrainedModel:
    """A random float32 model on the CPU, of the configuration cut as far as it can be.

    Raises what transformers raises where no cut of it can be built and run.
    """
    for cut in (partial(_narrow, is_apart=True), _narrow):
        try:
            return _random(_cut(config, cut, trust_remote_code), seed, trust_remote_code)
        except Exception as error:  # whatever a foreign model raises where widths depend on others
            log.debug("a cut cannot be run", extra={"reason": str(error)})
    return _random(_cut(config, _shallow, trust_remote_code), seed, trust_remote_code)


def with_small_vocabulary(config: Any) -> Any:
    """A copy with the vocabulary of every cut, which none of the rest depends on."""
    made = copy.deepcopy(config)
    for part in _parts(made):
        _shallow(part)
    return made


def _cut(config: Any, cut: Callable[[Any], None], trust_remote_code: bool) -> Any:
    made = copy.deepcopy(config)
    for part in _parts(made):
        cut(part)
        _shorten(part)
    for part in _parts(made):
        _keep_layers(part, _layers_needed(made, part, trust_remote_code))
    made.dtype = torch.float32
    if hasattr(made, "validate"):
        made.validate()
    return made


def _parts(config: Any) -> Iterator[Any]:
    """The configuration and those within it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _parts(value)


def _random(config: Any, seed: int, trust_remote_code: bool) -> PreTrainedModel:
    """The random model, of the weights' sizes that let logits depend most on a token before."""
    with torch.device("meta"):
        skeleton = _built(config, trust_remote_code)
    if (size := sum(p.numel() for p in skeleton.parameters())) > _MOST_PARAMETERS:
        raise ValueError(f"its smallest cut has {size} parameters")
    state = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        model = _built(config, trust_remote_code).float().eval().requires_grad_(False)
    finally:
        torch.set_rng_state(state)
    found: dict[float, float] = {}
    for std in _STDS:
        _fill(model, std, seed)
        found[std] = _context_share(model)
        if found[std] >= _ENOUGH:
            return model
    _fill(model, max(found, key=lambda std: found[std]), seed)
    return model


def _fill(model: PreTrainedModel, std: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std, generator=generator)


@torch.inference_mode()
def _context_share(model: PreTrainedModel) -> float:
    """How far another token four places before moves the logits, in parts of their spread."""
    ids = torch.arange(3, 3 + 2 * WINDOW)[None]
    before = model(input_ids=ids, use_cache=False).logits[0, -1]
    ids[0, -5] = VOCABULARY - 1
    after = model(input_ids=ids, use_cache=False).logits[0, -1]
    if not bool(torch.isfinite(before).all()):
        raise ValueError("its logits are not finite with random weights")
    return float((after - before).norm() / (before - before.mean()).norm().clamp(min=1e-9))


def _built(config: Any, trust_remote_code: bool) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(
        copy.deepcopy(config), dtype=torch.float32, trust_remote_code=trust_remote_code
    )


# --- depth ---------------------------------------------------------------------------------------


def _depth(config: Any) -> int:
    return max((_number(config, name) for name in _DEPTHS), default=0)


def _layers_needed(whole: Any, part: Any, trust_remote_code: bool) -> int:
    """The fewest first layers of a part that hold each kind of its layers."""
    depth = _depth(part)
    if depth <= 2:
        return depth
    with torch.device("meta"):
        skeleton = _built(whole, trust_remote_code)
    stacks = [m for m in skeleton.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    lists = [v for _, v in _per_layer(part, depth)]
    needed = 2
    for stack in stacks:
        kinds = [_kind(layer) for layer in stack]
        needed = max(needed, *(kinds.index(kind) + 1 for kind in set(kinds)))
    for values in lists:
        if values == list(range(depth)):
            continue  # which layers, not what they are
        shown = [str(value) for value in values]
        needed = max(needed, *(shown.index(value) + 1 for value in set(shown)))
    return needed


def _kind(layer: nn.Module) -> str:
    """What a layer computes, but for its weights: classes, shapes and what they are told."""
    told = [
        (name, type(module).__name__, sorted(_told(module)), _shapes(module))
        for name, module in layer.named_modules()
    ]
    return repr(told)


def _told(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, value in vars(module).items():
        is_told = isinstance(value, bool | int | str | None) and not name.startswith("_")
        if is_told and not _PLACES.search(name):
            yield name, repr(value)


def _shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)]


def _per_layer(config: Any, depth: int) -> Iterator[tuple[str, list[Any]]]:
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == depth:
            yield name, list(value)


def _keep_layers(config: Any, kept: int) -> None:
    depth = _depth(config)
    if not depth or kept >= depth:
        return
    for name, values in _per_layer(config, depth):
        setattr(config, name, values[:kept])
    if isinstance(kinds := getattr(config, "attention_types", None), list):
        config.attention_types = [[pattern, kept // len(pattern)] for pattern, _ in kinds[:1]]
        kept = sum(len(pattern) * count for pattern, count in config.attention_types)
        config.attention_layers = config.attention_layers[:kept]
    overrides = getattr(vars(config).get("_heterogeneity_spec"), "per_layer_overrides", None)
    if isinstance(overrides, dict):
        for layer in [layer for layer in overrides if layer >= kept]:
            del overrides[layer]
    for name in _DEPTHS:
        if _number(config, name):
            setattr(config, name, kept)
    if shared := _number(config, "num_kv_shared_layers"):
        config.num_kv_shared_layers = max(0, kept - (depth - shared))


# --- width and lengths ---------------------------------------------------------------------------


def _narrow(config: Any, *, is_apart: bool = False) -> None:
    """Fewer heads of their own size, and all that is as wide as they are.

    `is_apart`: their size is stated, and no width follows from it.
    """
    heads = max((_number(config, name) for name in _HEADS), default=0)
    few = min(heads, _FEW_HEADS) or _FEW_HEADS
    for name in _WIDTHS:
        width = _number(config, name)
        if is_apart and width > few * 32 and (heads > few or width > 512 or not heads):
            setattr(config, name, few * 32)
        elif width and heads > _FEW_HEADS:
            setattr(config, name, few * (32 if width % heads else width // heads))
    for name in _KEY_HEADS:
        if (number := _number(config, name)) > 1 and (heads > _FEW_HEADS or not heads):
            is_each = heads and number >= heads
            setattr(config, name, _FEW_HEADS if is_each else min(number, _FEW_HEADS // 2))
    for name in _HEADS:
        if _number(config, name) > _FEW_HEADS:
            setattr(config, name, _FEW_HEADS)
    for name in _FEED_FORWARD:
        given = vars(config).get(name)
        if isinstance(given, list):
            setattr(config, name, [min(each, 64) for each in given])
        elif _number(config, name) > 64:
            setattr(config, name, 64)
    _drop_experts(config)
    _shallow(config)


def _drop_experts(config: Any) -> None:
    chosen = max((_number(config, name) for name in _CHOSEN), default=0)
    groups = max(1, _number(config, "n_group"))
    for name in _EXPERTS:
        most = groups * max(2, -(-2 * max(chosen, 2) // groups))
        if _number(config, name) > most:
            setattr(config, name, most)


def _shallow(config: Any) -> None:
    """A small vocabulary, with its special tokens in it."""
    for name in [n for n in vars(config) if "vocab_size" in n or n.endswith("_vocab")]:
        if _number(config, name) > VOCABULARY:
            setattr(config, name, VOCABULARY)
    for place, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")):
        if getattr(config, name, None) is not None:
            setattr(config, name, place)


def _shorten(config: Any) -> None:
    for name in _WINDOWS:
        if _number(config, name) > WINDOW:
            setattr(config, name, WINDOW)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    ropes = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    changing = [r for r in ropes if r.get("rope_type", r.get("type")) in _CHANGING]
    for each in changing:
        if each.get(_CHANGES):
            each[_CHANGES] = POSITIONS
    if changing and getattr(config, _CHANGES, None):
        setattr(config, _CHANGES, POSITIONS)
    if changing:
        for name in _POSITIONS:
            if _number(config, name):
                setattr(config, name, POSITIONS)
    elif not any(ropes):
        for name in _POSITIONS:
            if _number(config, name) > 16 * POSITIONS:
                setattr(config, name, 16 * POSITIONS)


def _number(config: Any, name: str) -> int:
    value = vars(config).get(name, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
