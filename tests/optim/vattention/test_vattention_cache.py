"""The transformers cache over the arena: what `DynamicCache` gives, bit for bit, in less memory."""

from __future__ import annotations

import copy
import gc
import mmap
from typing import Any

import pytest
import tiny_models
import torch
from fake_cuda_driver import FakeDriver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, Gemma3Config, Lfm2Config, Lfm2ForCausalLM
from transformers.cache_utils import LinearAttentionLayer
from transformers_steps import (
    ARCHITECTURES,
    HEADS,
    LAYERS,
    SIZE,
    generate,
    inputs,
    step_logits,
)

from optim.vattention.cache import VAttentionCache
from optim.vattention.cache_layer import ArenaLayer
from optim.vattention.cuda.arena import CudaArena
from optim.vattention.settings import Settings


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_equal_bit_for_bit(
    architecture: str, dtype: torch.dtype, attention: str
) -> None:
    lm = tiny_models.model(architecture, dtype, attention)
    expected = step_logits(lm, DynamicCache(config=lm.model.config), 80)
    assert torch.equal(step_logits(lm, VAttentionCache(lm.model.config), 80), expected)


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 4, "do_sample": False},
    "several beams": {"num_beams": 4, "num_return_sequences": 2, "do_sample": False},
    "sampled beams": {"num_beams": 3, "do_sample": True},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_gives_the_same_tokens(architecture: str, way: dict[str, Any]) -> None:
    lm = tiny_models.model(architecture)
    config = lm.model.config
    expected = generate(lm, DynamicCache(config=config), inputs(lm), max_new_tokens=24, **way)
    with VAttentionCache(config, max_length=200) as cache:
        assert torch.equal(generate(lm, cache, inputs(lm), max_new_tokens=24, **way), expected)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_prompt_lookup_crops_what_was_guessed_wrong(architecture: str) -> None:
    lm = tiny_models.model(architecture)
    batch = inputs(lm, ["abcabcabcabcabcabc"])
    options: dict[str, Any] = {
        "do_sample": False, "max_new_tokens": 40, "prompt_lookup_num_tokens": 3,
    }  # fmt: skip
    expected = generate(lm, DynamicCache(config=lm.model.config), batch, **options)
    cache = VAttentionCache(lm.model.config)
    crops = []
    real = cache.crop
    cache.crop = lambda n: (crops.append(n), real(n))  # type: ignore[method-assign]
    assert torch.equal(generate(lm, cache, batch, **options), expected)
    assert any(crops), "nothing was guessed wrong: the test shows nothing"


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "phi"])
def test_a_second_turn_goes_on_from_the_first(architecture: str) -> None:
    lm = tiny_models.model(architecture)
    found = []
    for cache in (DynamicCache(config=lm.model.config), VAttentionCache(lm.model.config)):
        batch = inputs(lm, ["a first question"])
        for _ in range(3):
            ids = generate(lm, cache, batch, max_new_tokens=16, do_sample=False)
            more = torch.cat([ids, torch.tensor([list(b" and then?")])], dim=1)
            batch = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        found.append(ids)
    assert torch.equal(*found)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
def test_copies_of_a_prefilled_prompt_go_on_by_themselves(architecture: str) -> None:
    lm = tiny_models.model(architecture)
    start = inputs(lm, ["a common prompt"])
    prefilled = VAttentionCache(lm.model.config)
    with torch.no_grad():
        lm.model(**start, past_key_values=prefilled)
    for ending in ("and this", "or that, which is longer"):
        batch = inputs(lm, ["a common prompt " + ending])
        expected = generate(lm, DynamicCache(config=lm.model.config), batch, max_new_tokens=20)
        with copy.deepcopy(prefilled) as cache:
            assert torch.equal(generate(lm, cache, batch, max_new_tokens=20), expected)
    assert prefilled.get_seq_length() == start["input_ids"].shape[1]


def test_rows_change_under_inference_mode_and_no_grad_in_turns() -> None:
    lm = tiny_models.model("gemma3")
    found = []
    for cache in (DynamicCache(config=lm.model.config), VAttentionCache(lm.model.config)):
        for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad):
            with mode():
                logits = lm.model(torch.arange(12).view(2, 6), past_key_values=cache).logits
                cache.reorder_cache(torch.tensor([1, 1]))
                cache.batch_repeat_interleave(2)
                cache.batch_select_indices(torch.tensor([2, 0]))
                cache = copy.deepcopy(cache)
        found.append(logits.clone())
    assert torch.equal(*found)


def test_layers_of_other_kinds_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    sizes = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Lfm2Config(**sizes, **heads, num_hidden_layers=4, layer_types=kinds, eos_token_id=256)
    model = Lfm2ForCausalLM(config).eval()
    ids = torch.randint(0, 250, (2, 9))
    for beams in (1, 3):
        options = {"num_beams": beams, "max_new_tokens": 20, "do_sample": False}
        options |= {"attention_mask": torch.ones_like(ids), "pad_token_id": 256}
        expected = model.generate(ids, past_key_values=DynamicCache(config=config), **options)
        cache = VAttentionCache(config)
        assert torch.equal(model.generate(ids, past_key_values=cache, **options), expected)
    assert [type(layer) for layer in cache.layers] == [LinearAttentionLayer, ArenaLayer] * 2


def test_a_multimodal_model_has_the_layers_of_its_text_part() -> None:
    config = Gemma3Config(text_config=tiny_models.model("gemma3").model.config.to_dict())
    kinds = [type(layer) for layer in VAttentionCache(config).layers]
    sliding, full, _ = (type(layer) for layer in DynamicCache(config=config).layers)
    assert kinds == [sliding, ArenaLayer, sliding]
    assert kinds[1] is not full


# --- a model of the cache in plain tensors ---

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["append", "append", "append", "crop", "reorder", "repeat", "select", "reset", "copy"]
        ),
        st.integers(0, 1 << 30),
    ),
    max_size=20,
)
CHOICES: list[dict[str, Any]] = [
    {}, {"look_ahead": 0}, {"reclaim": "deferred", "deferred_bytes": 1 << 16}, {"look_ahead": 70},
]  # fmt: skip


class Plain:
    """What the cache should hold, [LAYERS, 2, B, HEADS, L, SIZE], changed as people would."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.states = torch.empty(LAYERS, 2, 0, HEADS, 0, SIZE)


def act(cache: VAttentionCache, plain: Plain, draw: torch.Generator, name: str, n: int) -> None:
    rows, length = plain.states.shape[2], plain.states.shape[4]
    if name == "append" and length < 900:
        rows = rows or 1 + n % 3
        new = torch.randn(LAYERS, 2, rows, HEADS, 1 + n % 150, SIZE, generator=draw)
        before = plain.states if length else new[..., :0, :]
        plain.states = torch.cat([before, new], dim=4)
        for layer in range(LAYERS):
            got = cache.update(new[layer, 0], new[layer, 1], layer)
            assert torch.equal(torch.stack(got), plain.states[layer])
    elif name == "reset":
        cache.reset()
        plain.reset()
    elif not rows:
        return
    elif name == "crop":
        cache.crop(-(n % (length + 1)))
        plain.states = plain.states[..., : length - n % (length + 1), :]
    elif name == "reorder":
        index = torch.randint(rows, (rows,), generator=draw)
        cache.reorder_cache(index)
        plain.states = plain.states[:, :, index]
    elif name == "repeat" and rows < 5:
        cache.batch_repeat_interleave(2)
        plain.states = plain.states.repeat_interleave(2, dim=2)
    elif name == "select":
        index = torch.randint(rows, (1 + n % rows,), generator=draw)
        cache.batch_select_indices(index)
        plain.states = plain.states[:, :, index]
    elif name == "copy" and length:
        check(copy.deepcopy(cache), plain)


def check_content(cache: VAttentionCache, plain: Plain) -> None:
    length = plain.states.shape[4]
    assert cache.get_seq_length() == length
    if length:
        for layer, states in zip(cache.layers, plain.states, strict=True):
            assert torch.equal(torch.stack([layer.keys, layer.values]), states)
    held = cache.accounts()
    assert held.used_bytes == plain.states.numel() * 4
    assert held.used_bytes <= held.committed_bytes == cache.audit()


def check(cache: VAttentionCache, plain: Plain) -> None:
    check_content(cache, plain)
    rows, length = plain.states.shape[2], plain.states.shape[4]
    chosen = cache._settings
    stripe = -(-(length + chosen.look_ahead) * SIZE * 4 // mmap.PAGESIZE) * mmap.PAGESIZE
    bound = 2 * LAYERS * HEADS * rows * stripe + chosen.kept_bytes
    assert cache.accounts().committed_bytes <= bound


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=ACTIONS, chosen=st.sampled_from(CHOICES), limit=st.sampled_from([None, 1100]))
def test_any_sequence_of_uses_holds_what_plain_tensors_hold(
    actions: list[tuple[str, int]], chosen: dict[str, Any], limit: int | None
) -> None:
    config = tiny_models.model("llama").model.config
    plain, draw = Plain(), torch.Generator().manual_seed(len(actions))
    with (
        torch.no_grad(),
        VAttentionCache(config, max_length=limit, settings=Settings(**chosen)) as cache,
    ):
        for name, n in actions:
            act(cache, plain, draw, name, n)
            check(cache, plain)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=ACTIONS, chosen=st.sampled_from(CHOICES), limit=st.sampled_from([None, 1100]))
def test_on_a_device_nothing_is_touched_that_is_not_there(
    actions: list[tuple[str, int]], chosen: dict[str, Any], limit: int | None
) -> None:
    config = tiny_models.model("llama").model.config
    plain, draw = Plain(), torch.Generator().manual_seed(len(actions))
    driver = FakeDriver(4096)
    wanted = Settings(**chosen)
    arena = CudaArena(driver, wanted.budget_bytes, wanted.pool_bytes)
    with (
        torch.no_grad(),
        VAttentionCache(config, max_length=limit, settings=wanted, arena=arena) as cache,
    ):
        for name, n in actions:
            act(cache, plain, draw, name, n)
            driver.launch()
            check_content(cache, plain)
    gc.collect()
    assert driver.is_empty()
