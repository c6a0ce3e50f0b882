"""Which shards are too small for their batches, and what `plan` advises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trial_results import configurations, make_plan

from cluster.plan import Dataset, Plan
from jobs.cli.forecast_table import unfilled_text
from jobs.forecasting.filling import empty_share, unfilled
from jobs.forecasting.forecast import forecast
from jobs.spec.configurations import expand
from jobs.spec.shards import fewest_units, topped_up, with_shards
from jobs.spec.trial_spec import DatasetSpec, TrialSpec, read_spec


def plan_with(
    sizes: dict[str, tuple[int, int]], batch_sizes: tuple[int, ...] = (4,), **changes: Any
) -> Plan:
    """Data sets by name: (prompts, shards)."""
    arms = [
        configurations()[0].model_copy(update={"name": f"c{i}", "batch_size": size})
        for i, size in enumerate(batch_sizes)
    ]
    datasets = tuple(
        Dataset(name=name, num_prompts=n, num_shards=s, first_row=0, fingerprint=name)
        for name, (n, s) in sizes.items()
    )
    return make_plan("out", arms=arms).model_copy(update={"datasets": datasets, **changes})


def test_the_demo_s_shards_of_three_need_more_prompts() -> None:
    sets = dict.fromkeys(("language", "networking", "data"), (24, 8))
    [found] = unfilled(plan_with(sets), needed=13)
    assert found.datasets == tuple(sets)
    assert (found.shard_prompts, found.batch_size) == (3, 4)
    assert found.empty_share == pytest.approx(0.25)
    assert (found.needed_shards, found.mended_shards, found.mended_prompts) == (8, 8, 64)
    assert unfilled_text(found) == (
        "Shards of language, networking, data hold 3 prompts, fewer than twice the batch of 4: "
        "about 25 % of its slots stay empty. `limit: 64` (now 24) would fill them; the verdicts "
        "need 8 shards each."
    )


def test_shards_that_differ_by_one_prompt_count_as_they_are() -> None:
    """Of 48 in 10 shards, two fill the batch of 4 once, and eight leave one prompt for later."""
    [found] = unfilled(plan_with({"d": (48, 10)}), needed=10)
    assert found.empty_share == pytest.approx(1 - 48 / (2 * 4 + 8 * 8))
    assert "Shards of d hold 4 or 5 prompts, fewer than twice the batch of 4" in unfilled_text(
        found
    )
    assert "about 33 % of its slots stay empty. `limit: 80` (now 48)" in unfilled_text(found)


def test_fewer_shards_where_the_verdicts_allow_them() -> None:
    [found] = unfilled(plan_with({"chat": (200, 40)}), needed=11)
    assert (found.mended_shards, found.mended_prompts, found.needed_shards) == (25, 200, 11)
    assert unfilled_text(found).endswith(
        "`shards: 25` would fill them; the verdicts need 11 shards each."
    )
    assert not unfilled(plan_with({"chat": (200, 25)}), needed=11)


def test_never_fewer_than_the_verdicts_need() -> None:
    [found] = unfilled(plan_with({"chat": (48, 12)}), needed=11)
    assert (found.mended_shards, found.mended_prompts) == (11, 88)
    assert "`limit: 88` (now 48) with `shards: 11`" in unfilled_text(found)
    # What is advised for one counts when the other's need is worked out: 40 are 16 and 24.
    sets = {"one": (128, 20), "other": (128, 32)}
    one, other = unfilled(plan_with(sets), needed=30)
    assert (one.mended_shards, other.mended_shards) == (16, 16)
    one, other = unfilled(plan_with(sets), needed=40)
    assert (one.mended_shards, one.mended_prompts) == (16, 128)
    assert (other.mended_shards, other.mended_prompts) == (24, 192)


@pytest.mark.parametrize(
    ("changes", "is_filled"),
    [
        ({}, False),
        ({"share_prompts": "seeds", "seeds": (0, 1, 2)}, True),  # 9 completions at once
        ({"share_prompts": "seeds", "seeds": (0, 1)}, False),
    ],
)
def test_seeds_that_share_prompts_fill_a_batch_together(
    changes: dict[str, Any], is_filled: bool
) -> None:
    assert (unfilled(plan_with({"d": (24, 8)}, **changes), needed=8) == ()) == is_filled


def test_the_largest_batch_counts_and_what_only_scores_does_not() -> None:
    assert not unfilled(plan_with({"d": (16, 8)}, batch_sizes=(1,)), needed=8)
    [found] = unfilled(plan_with({"d": (64, 8)}, batch_sizes=(1, 4, 8)), needed=8)
    assert (found.batch_size, found.mended_prompts) == (8, 128)
    plan = plan_with({"d": (16, 8)})
    scored = plan.datasets[0].model_copy(update={"generates": False})
    assert not unfilled(plan.model_copy(update={"datasets": (scored,)}), needed=8)


def test_the_estimate_is_of_lengths_as_the_pilot_had_them() -> None:
    assert empty_share([], [5], 4) == pytest.approx(1 - 5 / 8)
    assert empty_share([7, 7, 7], [5, 5], 4) == pytest.approx(1 - 5 / 8)
    assert empty_share([1, 1], [3], 4) == pytest.approx(0.25), "of one token there are no steps"
    # Three of 1 or 9 steps each on three slots: the mean is 5, the longest is 9 but for 1 in 8.
    expected = 1 - 5 / (9 - 8 / 8)
    assert empty_share([2, 10], [3], 3) == pytest.approx(expected, abs=0.05)


# --- the default number of shards ----------------------------------------------------------------


def spec_of(folder: Path, sizes: dict[str, int]) -> Path:
    datasets = []
    for name, size in sizes.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"{name} {n}"}) + "\n" for n in range(size)))
        datasets.append({"path": str(path)})
    arms = [{"name": "base"}, {"name": "small", "batch_size": 4, "vs": "base"}]
    spec = {"model": "demo", "datasets": datasets, "configurations": arms, "output": "out"}
    path = folder / "trial.yaml"
    path.write_text(json.dumps(spec))
    return path


def made(needed: int, *sets: tuple[int, int | None]) -> list[int]:
    """Shards by default of data sets, each (prompts, shards of its spec)."""
    given = [DatasetSpec(path=f"{i}.jsonl", shards=s) for i, (_, s) in enumerate(sets)]
    datasets = [
        Dataset(name=str(i), num_prompts=n, num_shards=min(s or 8, n), first_row=0, fingerprint="")
        for i, (n, s) in enumerate(sets)
    ]
    return [d.num_shards for d in topped_up(datasets, given, needed)]


def test_large_data_sets_give_the_shards_that_small_ones_lack() -> None:
    assert made(13, (4, None), (100, None)) == [4, 9]
    assert made(20, (4, None), (100, None), (50, None)) == [4, 8, 8], "20 are there"
    assert made(23, (4, None), (100, None), (50, None)) == [4, 11, 8], "the widest shards give"
    assert made(23, (4, None), (60, None), (50, None)) == [4, 10, 9]
    assert made(13, (4, None), (100, 6)) == [4, 6], "what a spec says stays"
    assert made(30, (9, None), (10, None)) == [9, 10], "there are no more prompts"


def test_a_plan_without_shards_has_what_the_verdicts_need(tmp_path: Path) -> None:
    path = spec_of(tmp_path, {"few": 1, "many": 400})
    spec = read_spec(path)
    needed = fewest_units(expand(spec), spec.analysis, look=2, num_sets=2)
    assert needed > 8 + 1, "so that the large data set has to give more than its 8"
    found = forecast(path, pilot_prompts=0)
    assert found.num_cells == 4 * needed, "two configurations, each with its repeat"
    [few] = found.unfilled
    assert (few.datasets, few.shards, few.needed_shards) == (("few",), 1, 8)
    (tmp_path / "one").mkdir()
    alone = forecast(spec_of(tmp_path / "one", {"many": 400}), pilot_prompts=0)
    assert alone.num_cells == 4 * fewest_units(expand(spec), spec.analysis, look=2)
    assert alone.unfilled == ()


def test_shards_stay_where_none_are_missing() -> None:
    datasets = [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    spec = TrialSpec.model_validate({"model": "demo", "datasets": datasets, "output": "out"})
    arms = expand(spec)
    shards = [d.shards for d in with_shards(spec.datasets, arms, spec.analysis)]
    assert shards == [8, 8]
    assert made(fewest_units(arms, spec.analysis, look=2), (24, None), (24, None)) == shards
