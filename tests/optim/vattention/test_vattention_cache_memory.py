"""The transformers cache over the arena: memory that goes back, and misuse that is refused."""

from __future__ import annotations

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
from transformers import DynamicCache
from transformers_steps import (
    HEADS,
    LAYERS,
    SIZE,
    generate,
    inputs,
    step_logits,
)

from optim.cache.slot_cache import KVAccounts
from optim.errors import InputError
from optim.vattention.arena.arena import KVMemoryError, LiveTensorError, Spans
from optim.vattention.cache import VAttentionCache
from optim.vattention.linux import mappings
from optim.vattention.linux.arena import LinuxArena
from optim.vattention.settings import Settings


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
    assert mappings_after <= mappings_before + 20, "190 turns leave nothing"
    assert rss_after <= rss_before
