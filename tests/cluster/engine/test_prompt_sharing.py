"""A prompt is prefilled once and forked: the same completions, less compute, less memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from cluster.engine.completion import Completion, Request
from cluster.engine.engine import Engine
from cluster.engine.prefixes import PrefixStore
from cluster.engine.sampling import SamplingParams
from cluster.plan import (
    Configuration,
    Dataset,
    Generation,
    ModelSource,
    OptimizationSettings,
    Plan,
)
from cluster.results.results import MANIFEST, Results, write_prompts
from cluster.results.verification import faults_of
from cluster.worker.worker import Worker
from optim.cache.slot_cache import CACHES
from optim.model import LanguageModel
from optim.registry import apply_all, optimization
from optim.vattention.arena.arena import KVMemoryError
from optim.vattention.arena.shared_prefix import SharedRow
from optim.vattention.linux import mappings

PARAMS = SamplingParams(temperature=0.9, max_new_tokens=30)
SEEDS = 4
CACHE_NAMES = ["dynamic", "static", "vattention"]


def engine(lm: LanguageModel, cache: str, **options: Any) -> Engine:
    if cache == "vattention":
        return Engine(apply_all(lm, [optimization(cache, {})]), **options)
    return Engine(lm, cache=CACHES[cache], **options)


def requests(prompts: list[str], seeds: int = SEEDS) -> list[Request]:
    return [Request(str(i), p, PARAMS, s) for i, p in enumerate(prompts) for s in range(seeds)]


def ran(made: Engine, prompts: list[str]) -> list[Completion]:
    found = list(made.generate(requests(prompts)))
    return sorted(found, key=lambda c: (int(c.request.prompt_id), c.request.seed))


def count_prefills(made: Engine) -> list[int]:
    """Tokens of each forward that had more than one, or is the first of its sequence."""
    seen: list[int] = []
    real = made.prefill

    def spy(cache: Any, slot: int, ids: list[int]) -> torch.Tensor:
        seen.append(len(ids))
        return real(cache, slot, ids)

    made.prefill = spy  # type: ignore[method-assign]
    return seen


PROMPTS = ["x" * 130 + str(i) for i in range(3)] + ["short", "y" * 64]


@pytest.mark.parametrize("chunk", [None, 50])
@pytest.mark.parametrize("cache", CACHE_NAMES)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_seeds_of_a_prompt_share_its_prefill(
    architecture: str, cache: str, chunk: int | None
) -> None:
    lm = tiny_models.model(architecture)
    options: dict[str, Any] = {"batch_size": SEEDS, "prefill_chunk": chunk}
    expected = ran(engine(lm, cache, **options), PROMPTS)
    store = PrefixStore()
    shared = engine(lm, cache, **options, prefixes=store)
    tokens = count_prefills(shared)
    made = ran(shared, PROMPTS)
    assert [c.ids for c in made] == [c.ids for c in expected]
    assert sum(tokens) == sum(map(len, PROMPTS))
    assert store.num_prefills == len(PROMPTS)
    assert store.num_bytes == 0, "every prompt has gone with its last fork"
    for completion in made:
        prompt, own = completion.request.prompt, completion.request.seed == 0
        # A prompt below one page per stripe has nothing to map.
        maps = cache == "vattention" and len(prompt) * 64 >= 4096
        expected_word = None if own else "mapped" if maps else "copied"
        assert completion.prefill_shared == expected_word
    if cache == "vattention":
        assert shared.stats.kv_audit is not None
        books, system = shared.stats.kv_audit
        assert books == system


def test_prompt_memory_of_k_seeds_is_near_one_kth() -> None:
    lm = tiny_models.model("llama")
    prompts = ["x" * 220]
    peaks = {}
    for name, store in (("own", None), ("shared", PrefixStore())):
        exact = apply_all(lm, [optimization("vattention", {"look_ahead": 0})])
        made = Engine(exact, batch_size=8, prefixes=store)
        list(made.generate(requests(prompts, seeds=8)))
        peaks[name] = made.stats.kv_peak.committed_bytes
    stripes, page = 2 * 3 * 2, 4096
    own, shared = (peaks[name] / stripes / page for name in ("own", "shared"))
    # 220 tokens are 3 full pages and a part of a 4th; 250 tokens are 4 pages.
    assert own == 8 * 4
    assert shared == 4 + 8 * 1


def test_what_cannot_be_mapped_is_copied_and_the_rows_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = tiny_models.model("llama")
    expected = [c.ids for c in ran(engine(lm, "vattention", batch_size=4), PROMPTS)]
    monkeypatch.setattr(mappings, "limit", lambda: 0)
    made = ran(engine(lm, "vattention", batch_size=4, prefixes=PrefixStore()), PROMPTS)
    assert [c.ids for c in made] == expected
    assert {c.prefill_shared for c in made} == {None, "copied"}


@pytest.mark.parametrize("first", CACHE_NAMES)
def test_every_cache_forks_what_another_prefilled(first: str) -> None:
    lm = tiny_models.model("gemma3")
    expected = [c.ids for c in ran(engine(lm, "dynamic", batch_size=3), PROMPTS)]
    store = PrefixStore(keeps=True)
    order = [first, *(name for name in CACHE_NAMES if name != first), first]
    for turn, name in enumerate(order):
        made = engine(lm, name, batch_size=3, prefixes=store)
        tokens = count_prefills(made)
        made.share(requests(PROMPTS))
        assert sum(tokens) == (0 if turn else sum(map(len, PROMPTS)))
        completions = ran(made, PROMPTS)
        assert [c.ids for c in completions] == expected
        assert all(c.prefill_shared for c in completions)
    store.clear()
    assert store.num_bytes == 0


@pytest.mark.parametrize("cache", CACHE_NAMES)
def test_a_prompt_s_bytes_are_those_of_all_its_layers(cache: str) -> None:
    lm = tiny_models.model("gemma3")  # two sliding layers with a window of 12, one full layer
    store = PrefixStore(keeps=True)
    made = engine(lm, cache, batch_size=1, prefixes=store)
    made.share(requests(["x" * 100], seeds=1))
    per_token = 2 * 2 * 16 * 4  # key and value, heads, head size, bytes of fp32
    sliding = 2 * 11 * per_token
    full = 2 * 2 * 2 * 4096 if cache == "vattention" else 100 * per_token  # in whole pages
    assert store.num_bytes == store.unmapped_bytes == sliding + full


def test_a_full_store_leaves_prompts_to_their_owners() -> None:
    lm = tiny_models.model("llama")
    store = PrefixStore(keeps=True, max_bytes=1)
    made = engine(lm, "dynamic", batch_size=2, prefixes=store)
    made.share(requests(PROMPTS))
    assert store.num_prefills == 1
    completions = ran(made, PROMPTS)
    shared = [c.prefill_shared for c in completions if c.request.prompt_id == "0"]
    assert shared == ["copied"] * SEEDS
    assert all(c.prefill_shared is None for c in completions if c.request.prompt_id != "0")


def test_no_memory_for_a_fork_waits_and_no_memory_at_all_prefills_alone() -> None:
    lm = tiny_models.model("llama")
    expected = [c.ids for c in ran(engine(lm, "dynamic", batch_size=1), PROMPTS)]
    stripe_pages = 2 * 3 * 2 * 4096
    tight = apply_all(lm, [optimization("vattention", {"budget_bytes": 7 * stripe_pages})])
    made = ran(Engine(tight, batch_size=4, prefixes=PrefixStore()), PROMPTS)
    assert [c.error for c in made] == [None] * len(expected)
    assert [c.ids for c in made] == expected


def test_a_prompt_that_is_lost_while_it_is_shared_begins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = tiny_models.model("llama")
    expected = [c.ids for c in ran(engine(lm, "vattention", batch_size=4), PROMPTS)]
    real, calls = SharedRow.attach, iter(range(1000))

    def sometimes(self: SharedRow, pages: Any, row: int) -> bool:
        if next(calls) in (2, 3, 12, 13):  # with the second try that reclaims first
            raise KVMemoryError("none left just then")
        return real(self, pages, row)

    monkeypatch.setattr(SharedRow, "attach", sometimes)
    made = ran(engine(lm, "vattention", batch_size=4, prefixes=PrefixStore()), PROMPTS)
    for completion, ids in zip(made, expected, strict=True):
        assert completion.error is not None or completion.ids == ids
    assert sum(c.error is None for c in made) >= len(made) - 2


# --- in a trial ---


def trial(folder: Path, model: Path, share: str) -> tuple[Plan, Results]:
    vattention = (OptimizationSettings(name="vattention"),)
    arms = (
        Configuration(name="dynamic", batch_size=4),
        Configuration(name="static", batch_size=4, cache="static"),
        Configuration(name="vattention", batch_size=4, optimizations=vattention),
    )
    plan = Plan(
        run_id="run",
        output=str(folder / share),
        model=ModelSource(path=str(model)),
        configurations=tuple(
            c.model_copy(update={"fingerprint": c.name + share}) for c in arms
        ),
        datasets=(
            Dataset(name="d", num_prompts=6, first_row=0, num_shards=2, fingerprint="f"),
        ),
        seeds=(3, 5, 7),
        generation=Generation(max_new_tokens=12, temperature=0.9),
        share_prompts=share,  # type: ignore[arg-type]
    )  # fmt: skip
    results = Results(plan.output)
    results.store.create(MANIFEST, json.dumps({"plan": plan.model_dump(mode="json")}).encode())
    texts = [("many words " * (8 + i))[:150] for i in range(5)]
    rows: list[dict[str, Any]] = [
        {"dataset": "d", "row": i, "prompt_id": f"p{i}", "prompt": text, "is_chat": False}
        for i, text in enumerate(texts)
    ]
    rows.append({"dataset": "d", "row": 5, "prompt_id": "bad", "error": "line 6: bad"})
    write_prompts(results.store, rows)
    return plan, results


def work(plan: Plan, keys: set[str] | None = None) -> list[dict[str, Any]]:
    worker = Worker(plan.model_dump_json(), 0)
    worker.load()
    receipts: list[dict[str, Any]] = []
    for block in plan.blocks():
        wanted = [c.key for c in block.cells if keys is None or c.key in keys]
        receipts += worker.run(block.model_dump_json(), wanted)
    return receipts


def texts(results: Results) -> dict[tuple[str, str, int], str]:
    return {
        (r["configuration"], r["prompt_id"], r["seed"]): r["completion_text"]
        for r in results.read("generations").to_pylist()
    }


@pytest.mark.parametrize("share", ["seeds", "configurations"])
def test_a_trial_that_shares_prompts_has_the_same_texts(
    tmp_path: Path, tiny_model_folder: Path, share: str
) -> None:
    plain, plain_results = trial(tmp_path, tiny_model_folder, "none")
    work(plain)
    plan, results = trial(tmp_path, tiny_model_folder, share)
    receipts = work(plan)
    assert list(faults_of(results)) == []
    assert len(receipts) == 3 * 2 * 3
    assert texts(results) == texts(plain_results)
    rows = [r for r in results.read("generations").to_pylist() if r["error"] is None]
    words = {r["configuration"]: set() for r in rows}  # type: ignore[var-annotated]
    for row in rows:
        words[row["configuration"]].add(row["prefill_shared"])
    own: set[str | None] = {None} if share == "seeds" else set()
    assert words == {
        "dynamic": {"copied"} | own,
        "static": {"copied"} | own,
        "vattention": {"mapped"} | own,
    }
    for facts in results.cells():
        assert facts["joint_cells"] == 3
        assert (facts["prefix_s"] > 0) == (share == "configurations")
        assert facts["wall_s"] > 0
    audited = [f for f in results.cells() if f["configuration"] == "vattention"]
    assert all(f["kv_books_bytes"] == f["kv_system_bytes"] for f in audited)


def test_a_resumed_trial_runs_all_seeds_again_and_keeps_what_was_there(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    plan, results = trial(tmp_path, tiny_model_folder, "seeds")
    first = next(iter(plan.blocks())).cells[0]
    [receipt] = work(plan, {first.key})
    assert receipt["key"] == first.key
    committed = results.committed_keys()
    assert len(committed) == 3, "the seeds that ran beside it are there as well"
    work(plan)
    assert list(faults_of(results)) == []
