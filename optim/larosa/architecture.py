"""Where the parts that LaRoSA changes lie in the models of each architecture.

A site is an activation that projections read: h1 in front of attention, h2 behind it, h3 in front
of the MLP, h4 inside it (the paper's names). h1 and h3 lie behind a norm in the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from optim.errors import InputError

SiteName = Literal["h1", "h2", "h3", "h4"]


@dataclass(frozen=True)
class Site:
    """One activation of a layer, and the projections that read it. Paths are within the layer."""

    name: SiteName
    norm: str | None
    """The norm that makes it; None where the (only) projection selects from its own input."""
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """How a family of models is laid out; the defaults are Llama's."""

    layers: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    """Tables whose rows are added into the residual stream."""
    final_norm: str = "model.norm"
    attention_norm: str = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    """None where attention and MLP read one norm (h3 is h1)."""
    attention_inputs: tuple[str, ...] = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    )
    attention_output: str = "self_attn.o_proj"
    mlp_inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_output: str = "mlp.down_proj"
    values: Literal["own", "last", "interleaved"] = "own"
    """Where value rows lie: the last input projection is theirs alone; they are its last rows; or
    each head has its query, key and value rows in a row."""
    norm: Literal["rms", "layer"] = "rms"
    gain_offset: float = 0.0
    """What is added to a norm's weight to make its gain (Gemma: 1)."""
    rotates_stream: bool = True
    """Whether a rotation of the residual stream can be absorbed."""
    note: str = field(default="", compare=False)

    def sites(self) -> tuple[Site, ...]:
        """The sites of a layer in the order of computation."""
        reads = self.attention_inputs
        if self.mlp_norm is None:
            return (
                Site("h1", self.attention_norm, (*reads, *self.mlp_inputs)),
                Site("h2", None, (self.attention_output,)),
                Site("h4", None, (self.mlp_output,)),
            )
        return (
            Site("h1", self.attention_norm, reads),
            Site("h2", None, (self.attention_output,)),
            Site("h3", self.mlp_norm, self.mlp_inputs),
            Site("h4", None, (self.mlp_output,)),
        )


_POST_NORMS = (
    "its norms behind attention and MLP stand between their outputs and the residual stream, so a "
    "rotation of the stream cannot be absorbed: h1 and h3 are selected from unrotated, only h2 is "
    "rotated"
)
_LLAMA = Architecture()
_GEMMA_2 = Architecture(
    mlp_norm="pre_feedforward_layernorm", gain_offset=1.0, rotates_stream=False, note=_POST_NORMS
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi": Architecture(
        final_norm="model.final_layernorm",
        mlp_norm=None,
        attention_output="self_attn.dense",
        mlp_inputs=("mlp.fc1",),
        mlp_output="mlp.fc2",
        norm="layer",
    ),
    "phi3": Architecture(
        attention_inputs=("self_attn.qkv_proj",), mlp_inputs=("mlp.gate_up_proj",), values="last"
    ),
    "gemma": Architecture(gain_offset=1.0),
    "gemma2": _GEMMA_2,
    "gemma3_text": _GEMMA_2,
    "gpt_neox": Architecture(
        layers="gpt_neox.layers",
        embeddings=("gpt_neox.embed_in",),
        final_norm="gpt_neox.final_layer_norm",
        attention_inputs=("attention.query_key_value",),
        attention_output="attention.dense",
        mlp_inputs=("mlp.dense_h_to_4h",),
        mlp_output="mlp.dense_4h_to_h",
        values="interleaved",
        norm="layer",
    ),
    "gpt2": Architecture(
        layers="transformer.h",
        embeddings=("transformer.wte", "transformer.wpe"),
        final_norm="transformer.ln_f",
        attention_norm="ln_1",
        mlp_norm="ln_2",
        attention_inputs=("attn.c_attn",),
        attention_output="attn.c_proj",
        mlp_inputs=("mlp.c_fc",),
        mlp_output="mlp.c_proj",
        values="last",
        norm="layer",
    ),
}
"""`model_type` of the config -> layout."""


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The layout of a model; InputError, with those that are known, where there is none."""
    kind = model.config.model_type
    known = ARCHITECTURES.get(kind)
    if known is None:
        raise InputError(
            f"larosa does not know the architecture {kind!r} ({type(model).__name__})",
            field="model",
            mend=f"It knows {', '.join(sorted(ARCHITECTURES))}",
        )
    if getattr(model.config, "add_cross_attention", False):
        raise InputError("larosa does not know models with cross-attention", field="model")
    return known


def layers_of(model: nn.Module, architecture: Architecture) -> nn.ModuleList:
    """The decoder layers."""
    layers = model.get_submodule(architecture.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def heads_of(model: PreTrainedModel) -> tuple[int, int, int]:
    """(query heads, key-value heads, values per head)."""
    config = model.config.get_text_config(decoder=True)
    queries = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or queries)
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    return queries, keys, int(size)
