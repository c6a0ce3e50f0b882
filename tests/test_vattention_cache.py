"""The transformers cache over the arena: what `DynamicCache` gives, bit for bit, in less memory."""

from __future__ import annotations

import copy
import gc
import mmap
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from fake_cuda_driver import FakeDriver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, Gemma3Config, Lfm2Config, Lfm2ForCausalLM
from transformers.cache_utils import Cache, LinearAttentionLayer

from optim.cache import KVAccounts
from optim.errors import InputError
from optim.model import LanguageModel
from optim.vattention import mappings
from optim.vattention.arena import KVMemoryError, LiveTensorError, Spans
from optim.vattention.cache import VAttentionCache
from optim.vattention.cache_layer import ArenaLayer
from optim.vattention.cuda import CudaArena
from optim.vattention.linux import LinuxArena
from optim.vattention.settings import Settings

PROMPTS = ["hello there my friend", "abc", "one two three"]
ARCHITECTURES = sorted(tiny_models.ARCHITECTURES)


def inputs(lm: LanguageModel, prompts: list[str] = PROMPTS) -> Any:
    lm.tokenizer.padding_side = "left"
    return lm.tokenizer(prompts, return_tensors="pt", padding=True)


def generate(lm: LanguageModel, cache: Cache, batch: Any, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    made: torch.Tensor = lm.model.generate(
        **batch, past_key_values=cache, pad_token_id=tiny_models.END, **options
    )
    return made


def step_logits(lm: LanguageModel, cache: Cache, steps: int) -> torch.Tensor:
    """Logits of a padded prompt and of `steps` greedy steps, [steps, B, V]."""
    batch = inputs(lm)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    found = []
    with torch.no_grad():
        for _ in range(steps):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            logits = lm.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
            ).logits[:, -1]
            found.append(logits)
            ids = logits.argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return torch.stack(found)


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

LAYERS, HEADS, SIZE = 3, 2, 16
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


# --- memory ---


def filled(tokens: int, rows: int = 2, **options: Any) -> VAttentionCache:
    cache = VAttentionCache(tiny_models.model("llama").model.config, **options)
    new = torch.ones(rows, HEADS, tokens, SIZE)
    for layer in range(LAYERS):
        cache.update(new, new, layer)
    return cache


def test_reset_and_crop_give_memory_back() -> None:
    cache = filled(900, settings=Settings(look_ahead=0))
    assert cache.audit() == 2 * 2 * LAYERS * HEADS * 15 * mmap.PAGESIZE
    cache.crop(-840)
    assert cache.audit() == 2 * 2 * LAYERS * HEADS * 1 * mmap.PAGESIZE
    new = torch.ones(2, HEADS, 40, SIZE)
    for layer in range(LAYERS):
        cache.update(new, new, layer)
    assert cache.audit() == cache.accounts().committed_bytes, "what comes again is counted"
    cache.reset()
    assert cache.audit() == cache.accounts().committed_bytes == 0
    new = torch.ones(5, HEADS, 3, SIZE)
    assert cache.update(new, new, 0)[0].shape == (5, HEADS, 3, SIZE), "in other numbers, too"


def test_a_limit_is_kept_and_no_limit_moves_on() -> None:
    cache = filled(100, max_length=120)
    assert cache.get_max_length() == 120
    more = torch.ones(2, HEADS, 30, SIZE)
    with pytest.raises(KVMemoryError, match="has 130 tokens and the cache was made for 120"):
        cache.update(more, more, 0)
    free = filled(250)  # the model knows 256 positions
    assert free.get_max_length() == -1
    reserved = free.accounts().reserved_bytes
    for layer in range(LAYERS):
        keys, _ = free.update(more, more, layer)
        assert keys.shape == (2, HEADS, 280, SIZE)
        assert float(keys.sum()) == keys.numel()
    assert free.audit() == free.accounts().committed_bytes
    assert free.accounts().reserved_bytes == 2 * reserved


@contextmanager
def counted_commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Pages of each commit, in the background or not."""
    commits: list[int] = []
    real = LinuxArena.populate

    def populate(arena: LinuxArena, spans: Spans) -> None:
        commits.append(spans.total_bytes // mmap.PAGESIZE)
        real(arena, spans)

    with monkeypatch.context() as patch:
        patch.setattr(LinuxArena, "populate", populate)
        yield commits


def test_all_layers_are_committed_at_once_and_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    per_page = mmap.PAGESIZE // (SIZE * 4)
    stripes = 2 * 2 * LAYERS * HEADS
    one = torch.ones(2, HEADS, 1, SIZE)
    for ahead in (0, 4):
        cache = filled(per_page - 8, settings=Settings(look_ahead=ahead))
        with counted_commits(monkeypatch) as commits:
            for _ in range(8):
                for layer in range(LAYERS):
                    cache.update(one, one, layer)
            cache.audit()  # which waits for the background
            assert commits == ([stripes] if ahead else [])
            for layer in range(LAYERS):
                cache.update(one, one, layer)
                assert commits == [stripes]


def test_crops_of_a_few_tokens_keep_what_is_committed_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = filled(mmap.PAGESIZE // (SIZE * 4))
    guess = torch.ones(2, HEADS, 4, SIZE)
    with counted_commits(monkeypatch) as commits:
        for _ in range(6):
            for layer in range(LAYERS):
                cache.update(guess, guess, layer)
            cache.crop(-4)
    assert len(commits) == 1


def test_closing_under_a_live_tensor_raises() -> None:
    cache = filled(10)
    keys = cache.layers[0].keys
    with pytest.raises(LiveTensorError):
        cache.close()
    assert float(keys.sum()) == keys.numel()
    held = cache.accounts()
    assert held.used_bytes == cache.get_seq_length() == 0
    assert held.committed_bytes >= mmap.PAGESIZE, "what could not be unmapped is counted"
    del keys
    cache.close()
    assert cache.accounts() == KVAccounts(0, 0, 0)
    new = torch.ones(1, HEADS, 5, SIZE)
    cache.update(new, new, 0)
    assert cache.audit() == cache.accounts().committed_bytes == 2 * HEADS * mmap.PAGESIZE


def test_what_the_layers_of_transformers_hold_is_counted() -> None:
    cache = VAttentionCache(tiny_models.model("gemma3").model.config)  # a window of 12
    new = torch.ones(1, HEADS, 100, SIZE)
    cache.update(new, new, 0)
    token = 2 * HEADS * SIZE * 4
    assert cache.accounts() == KVAccounts(11 * token, 100 * token, 100 * token)
    cache.update(new[:, :, :1], new[:, :, :1], 0)
    assert cache.accounts() == KVAccounts(11 * token, 12 * token, 12 * token)


def test_a_lack_of_memory_while_rows_are_repeated_leaves_an_empty_cache() -> None:
    page = mmap.PAGESIZE
    budget = 2 * LAYERS * HEADS * 2 * page + 6 * page
    cache = filled(60, settings=Settings(budget_bytes=budget))
    with pytest.raises(KVMemoryError, match="do not fit the budget"):
        cache.batch_repeat_interleave(8)
    assert cache.get_seq_length() == cache.audit() == 0
    new = torch.ones(1, HEADS, 5, SIZE)
    assert cache.update(new, new, 0)[0].shape == (1, HEADS, 5, SIZE)


@pytest.mark.parametrize("change", ["rows", "length"])
def test_a_lack_of_memory_while_it_moves_empties_every_layer(change: str) -> None:
    config = tiny_models.model("gemma3").model.config
    stripes = 2 * 2 * HEADS
    cache = VAttentionCache(
        config, settings=Settings(budget_bytes=(4 * stripes + 1) * mmap.PAGESIZE, look_ahead=0)
    )
    new = torch.ones(2, HEADS, 250, SIZE)
    for layer in range(3):
        cache.update(new, new, layer)
    moved = {
        "rows": lambda: cache.batch_repeat_interleave(2),
        "length": lambda: cache.update(new, new, 1),  # the model knows 256 positions
    }
    with pytest.raises(KVMemoryError, match="do not fit the budget"):
        moved[change]()
    assert [layer.get_seq_length() for layer in cache.layers] == [0, 0, 0]
    assert cache.audit() == 0


def test_an_interrupt_while_rows_are_moved_leaves_nothing_behind() -> None:
    cache = filled(60)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    cache.layers[1].move_to = interrupted
    with pytest.raises(KeyboardInterrupt):
        cache.batch_repeat_interleave(2)
    assert cache.accounts() == KVAccounts(0, 0, 0)
    assert cache.audit() == 0


def test_a_layer_without_memory_is_not_written_at_the_second_try() -> None:
    layer_bytes = 2 * 2 * HEADS * mmap.PAGESIZE
    cache = VAttentionCache(
        tiny_models.model("llama").model.config, settings=Settings(budget_bytes=layer_bytes)
    )
    new = torch.ones(2, HEADS, 5, SIZE)
    cache.update(new, new, 0)
    for _ in range(2):
        with pytest.raises(KVMemoryError, match="do not fit the budget"):
            cache.update(new, new, 1)
    assert cache.audit() == cache.accounts().committed_bytes == layer_bytes


@pytest.mark.parametrize(
    "wrong",
    [(2, 1, 5, SIZE), (2, HEADS, 5, 1), (2, HEADS, 1, SIZE), (1, HEADS, 5, SIZE)],
    ids=["heads", "size", "length", "rows"],
)
def test_what_would_be_repeated_is_refused(wrong: tuple[int, ...]) -> None:
    cache = filled(10)
    good = torch.ones(2, HEADS, 5, SIZE)
    with pytest.raises(ValueError, match="and is given"):
        cache.update(good, torch.ones(wrong), 0)
    with pytest.raises(ValueError, match=r"takes torch\.float32 .* given torch\.bfloat16"):
        cache.update(good, good.bfloat16(), 0)
    assert cache.update(good, good, 0)[1].shape == (2, HEADS, 15, SIZE), "as if nothing had been"


def test_misuse_is_said_clearly() -> None:
    cache = filled(10)
    new = torch.ones(3, HEADS, 1, SIZE)
    with pytest.raises(ValueError, match="holds 2 rows and is given 3"):
        cache.update(new, new, 0)
    wanting = torch.ones(2, HEADS, 1, SIZE, requires_grad=True)
    with pytest.raises(RuntimeError, match="no_grad"):
        cache.update(wanting, wanting, 0)
    with pytest.raises(ValueError, match="as a negative"):
        cache.crop(3)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(cache)
    with pytest.raises(RuntimeError, match="not offloaded"):
        cache.layers[0].offload()
    with pytest.raises(RuntimeError, match="through the cache"):
        cache.layers[0].reorder_cache(torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="at least one row"):
        cache.batch_select_indices(torch.tensor([], dtype=torch.long))
    begun = VAttentionCache(tiny_models.model("llama").model.config)
    begun.update(new, new, 0)
    with pytest.raises(ValueError, match="is on cpu and is given tensors on meta"):
        begun.update(new.to("meta"), new.to("meta"), 1)
    with pytest.raises(InputError, match="no memory backend for the device meta"):
        VAttentionCache(tiny_models.model("llama").model.config, device="meta")


def test_a_forward_that_fails_midway_can_be_reset() -> None:
    lm = tiny_models.model("llama")
    cache = VAttentionCache(lm.model.config)
    hook = lm.model.model.layers[1].register_forward_pre_hook(lambda *a: 1 / 0)
    try:
        with torch.no_grad(), pytest.raises(ZeroDivisionError):
            lm.model(**inputs(lm), past_key_values=cache)
    finally:
        hook.remove()
    cache.reset()
    assert cache.audit() == 0
    expected = step_logits(lm, DynamicCache(config=lm.model.config), 4)
    assert torch.equal(step_logits(lm, cache, 4), expected)


def test_layers_of_several_lengths_are_committed_each() -> None:
    cache = filled(mmap.PAGESIZE // (SIZE * 4), settings=Settings(look_ahead=0))
    one = torch.ones(2, HEADS, 1, SIZE)
    cache.update(one, one, 0)  # and the forward fails
    cache.batch_select_indices(torch.tensor([1]))
    before = cache.audit()
    cache.update(one[:1], one[:1], 1)
    assert cache.audit() == cache.accounts().committed_bytes > before


def no_huge_page_rss_bytes() -> int:
    """Of all mappings that were told to have no huge pages, as those of an arena are."""
    total = size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Rss:"):
            size = int(line.split()[1]) << 10
        elif line.startswith("VmFlags:") and "nh" in line.split():
            total += size
    return total


def test_two_hundred_caches_leave_nothing_behind() -> None:
    lm = tiny_models.model("llama")
    batch = inputs(lm)
    held = [filled(5)]
    assert no_huge_page_rss_bytes() >= held[0].audit() > 0
    held.clear()
    gc.collect()
    held_at = []
    gc.disable()  # the last reference is enough
    try:
        for turn in range(200):
            cache = VAttentionCache(lm.model.config)
            generate(lm, cache, batch, max_new_tokens=3, do_sample=False)
            if turn % 2:
                cache.close()
            del cache
            if turn in (9, 199):
                held_at.append((mappings.count(), no_huge_page_rss_bytes()))
    finally:
        gc.enable()
    (mappings_before, rss_before), (mappings_after, rss_after) = held_at
    assert mappings_after <= mappings_before + 2
    assert rss_after <= rss_before
