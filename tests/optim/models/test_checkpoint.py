"""Folders that are no whole causal language model are refused by what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaForSequenceClassification

from optim.errors import InputError
from optim.model import load

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def edited(tiny_model_folder: Path, tmp_path: Path) -> Callable[..., str]:
    """A copy of the small model with other tensors, or another configuration."""

    def make(edit: Callable[[Tensors], object] = lambda t: None, **config: Any) -> str:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model_folder, folder)
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return str(folder)

    return make


def refusal(path: str) -> str:
    with pytest.raises(InputError) as caught:
        load(path)
    return str(caught.value)


def third_layer(tensors: Tensors) -> None:
    for name in [n for n in tensors if ".layers.2." in n]:
        del tensors[name]


def test_weights_that_are_missing_are_named(edited: Callable[..., str]) -> None:
    said = refusal(edited(lambda t: t.pop("lm_head.weight")))
    assert "model: the checkpoint lacks lm_head.weight. Give the model with all" in said


def test_a_layer_that_is_missing_is_named(edited: Callable[..., str]) -> None:
    said = refusal(edited(third_layer))
    assert "the checkpoint lacks model.layers.2.input_layernorm.weight, " in said
    assert "and 5 more" in said


def test_both_shapes_are_named(edited: Callable[..., str]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    said = refusal(edited(lambda t: t.update({name: t[name][:90].clone()})))
    assert f"the checkpoint has {name} [90, 64] where the configuration has [96, 64]" in said
    assert "ignore_mismatched" not in said, "a flag that nobody set"


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.1.mlp.down_proj.qzeros",
        "model.layers.7.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.embed_positions.weight",
        "base_model.model.lm_head.weight",
    ],
)
def test_tensors_that_a_layer_should_use_are_named(edited: Callable[..., str], name: str) -> None:
    said = refusal(edited(lambda t: t.update({name: torch.ones(64)})))
    assert f"the checkpoint has {name}, which its configuration has no use for" in said


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_codes_without_what_they_stand_for_are_refused(
    edited: Callable[..., str], dtype: torch.dtype
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    said = refusal(edited(lambda t: t.update({name: t[name].to(dtype)})))
    assert f"it holds {name} as " in said
    assert "no quantization_config says what that stands for" in said


def test_a_renamed_tensor_is_named_beside_what_is_missing(edited: Callable[..., str]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    said = refusal(edited(lambda t: t.update({f"module.{name}": t.pop(name)})))
    assert f"the checkpoint lacks {name}; it has module.{name}, which nothing uses" in said


def test_tensors_that_change_nothing_are_no_fault(
    edited: Callable[..., str], tiny_model_folder: Path
) -> None:
    names = ("model.rotary_emb.inv_freq", "vision_tower.weight", "v_head.summary.bias")
    extra = {name: torch.ones(2) for name in names}
    lm, plain = load(edited(lambda t: t.update(extra))), load(str(tiny_model_folder))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(lm.model(ids).logits, plain.model(ids).logits)


def test_masks_that_older_checkpoints_hold_are_no_fault(tmp_path: Path) -> None:
    config = CONFIG_MAPPING["gpt2"](
        vocab_size=258, n_embd=32, n_layer=1, n_head=2, eos_token_id=256
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    stored["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    stored["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(stored, file, metadata={"format": "pt"})
    assert load(str(tmp_path)).model.config.model_type == "gpt2"


def test_another_head_is_refused(tmp_path: Path) -> None:
    config = tiny_models.model("llama").model.config
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    said = refusal(str(tmp_path))
    assert "it is a LlamaForSequenceClassification: it has no head that writes text" in said


SMALL = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 1, "eos_token_id": 256}


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        ("t5", {"d_model": 32}, "t5 is an encoder-decoder, and only decoders are run here"),
        ("bart", {"d_model": 32}, "bart is an encoder-decoder, and only decoders are run here"),
        ("rwkv", {"attention_hidden_size": 32}, "rwkv keeps a state beside keys and values"),
        ("mamba", {"state_size": 4}, "mamba keeps a state beside keys and values"),
    ],
)
def test_what_is_no_decoder_is_refused_before_weights_are_read(
    tmp_path: Path, kind: str, config: dict[str, Any], said: str
) -> None:
    CONFIG_MAPPING[kind](**(SMALL | config)).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    assert said in refusal(str(tmp_path))


def test_a_quantiser_that_is_not_installed(edited: Callable[..., str]) -> None:
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    said = refusal(edited(quantization_config=awq))
    assert "cannot be loaded without another package: " in said


def test_router_logits_are_of_training_alone(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}
    config = CONFIG_MAPPING["mixtral"](**(SMALL | small | sizes), output_router_logits=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    assert not load(str(tmp_path)).model.config.output_router_logits
