"""From listed configurations and factors to arms, baselines, duplicates and comparisons."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.plan import Configuration
from jobs.spec.configurations import expand
from jobs.spec.trial_spec import TrialSpec
from optim.errors import InputError

OFF_ON = [False, True]


def configurations(**changes: Any) -> dict[str, Configuration]:
    spec = TrialSpec.model_validate(
        {"model": "demo", "datasets": ["demo/data"], "output": "out", "baseline_check": False}
        | changes
    )
    return {c.name: c for c in expand(spec)}


def refusal(**changes: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        configurations(**changes)
    return caught.value


def test_nothing_listed_is_one_baseline() -> None:
    found = configurations()
    assert list(found) == ["baseline"]
    assert found["baseline"] == Configuration(name="baseline")


def test_listed_configurations_take_the_trials_engine_settings() -> None:
    found = configurations(
        engine={"batch_size": 4, "cache": "static", "prefill_chunk": 64},
        configurations=[
            {"name": "base"},
            {"name": "one", "batch_size": 1},
            {"name": "whole", "prefill_chunk": None},
            {"name": "fast", "optimizations": ["x", {"y": {"k": 1}}]},
        ],
    )
    assert found["base"].prefill_chunk == 64
    assert (found["one"].batch_size, found["one"].cache) == (1, "static")
    assert found["whole"].prefill_chunk is None
    assert [(o.name, o.settings) for o in found["fast"].optimizations] == [
        ("x", {}),
        ("y", {"k": 1}),
    ]
    assert {name: c.vs for name, c in found.items()} == {
        "base": None,
        "one": None,
        "whole": None,
        "fast": "base",
    }


def test_a_full_factorial() -> None:
    found = configurations(factors={"vocabulary": [False, "ada"], "batch_size": [1, 8]})
    assert {name: c.vs for name, c in found.items()} == {
        "vocabulary-off.batch_size-1": None,
        "vocabulary-off.batch_size-8": None,
        "vocabulary-ada.batch_size-1": "vocabulary-off.batch_size-1",
        "vocabulary-ada.batch_size-8": "vocabulary-off.batch_size-8",
    }
    last = found["vocabulary-ada.batch_size-8"]
    assert last.levels == {"vocabulary": "ada", "batch_size": "8"}
    assert [o.name for o in last.optimizations] == ["ada"]


def test_listed_times_factors_are_prefixed_only_where_several_are_listed() -> None:
    one = configurations(configurations=[{"name": "a"}], factors={"larosa": OFF_ON})
    assert list(one) == ["larosa-off", "larosa-on"]
    two = configurations(
        configurations=[{"name": "a"}, {"name": "b", "optimizations": ["v"]}],
        factors={"larosa": OFF_ON},
    )
    assert list(two) == ["a.larosa-off", "a.larosa-on", "b.larosa-off", "b.larosa-on"]
    assert [o.name for o in two["b.larosa-on"].optimizations] == ["v", "larosa"]


def test_every_baseline_has_a_duplicate_right_behind_it() -> None:
    found = configurations(factors={"larosa": OFF_ON, "batch_size": [1, 8]}, baseline_check=True)
    assert list(found)[:4] == [
        "larosa-off.batch_size-1",
        "larosa-off.batch_size-1.repeat",
        "larosa-off.batch_size-8",
        "larosa-off.batch_size-8.repeat",
    ]
    assert len(found) == 6
    repeat = found["larosa-off.batch_size-8.repeat"]
    assert repeat.duplicate_of == repeat.vs == "larosa-off.batch_size-8"
    assert repeat.batch_size == 8


def test_without_a_baseline_at_the_same_settings_the_first_one_serves() -> None:
    found = configurations(
        configurations=[
            {"name": "first", "batch_size": 2},
            {"name": "second", "batch_size": 4},
            {"name": "fast", "optimizations": ["x"], "batch_size": 16},
        ]
    )
    assert found["fast"].vs == "first"


def test_a_baseline_at_the_same_batch_size_comes_before_the_first_one() -> None:
    found = configurations(
        factors={"batch_size": [1, 8], "cache": ["dynamic", "static"]}, baseline="cache-dynamic"
    )
    assert found["batch_size-1.cache-static"].vs == "batch_size-1.cache-dynamic"
    assert found["batch_size-8.cache-static"].vs == "batch_size-8.cache-dynamic"
    assert found["batch_size-8.cache-dynamic"].vs is None


def test_a_named_baseline() -> None:
    listed = [{"name": "plain"}, {"name": "tuned", "optimizations": ["t"]}]
    found = configurations(configurations=listed, baseline="tuned", baseline_check=True)
    assert {name: c.vs for name, c in found.items()} == {
        "plain": "tuned",
        "tuned": None,
        "tuned.repeat": "tuned",
    }


def test_a_listed_baseline_with_factors_is_its_plain_part() -> None:
    found = configurations(
        configurations=[{"name": "a"}, {"name": "b"}],
        factors={"larosa": OFF_ON},
        baseline="a",
    )
    assert [name for name, c in found.items() if c.vs is None] == ["a.larosa-off"]


def test_vs_names_a_configuration_or_a_listed_one_at_the_same_levels() -> None:
    listed = [
        {"name": "base"},
        {"name": "x", "optimizations": ["x"]},
        {"name": "y", "optimizations": ["y"], "vs": "x"},
    ]
    assert configurations(configurations=listed)["y"].vs == "x"
    found = configurations(configurations=listed, factors={"batch_size": [1, 8]})
    assert found["y.batch_size-8"].vs == "x.batch_size-8"


def test_levels_may_set_engine_settings() -> None:
    found = configurations(factors={"arm": {False: None, "big": {"batch_size": 32}}})
    assert found["arm-big"].batch_size == 32


def test_no_baseline() -> None:
    error = refusal(configurations=[{"name": "x", "optimizations": ["x"]}])
    assert error.field == "configurations"
    assert "`- name: baseline`" in str(error.mend)


def test_unknown_baseline() -> None:
    error = refusal(configurations=[{"name": "base"}], baseline="bse")
    assert error.field == "baseline"
    assert error.mend == "Did you mean `base`?"


def test_unknown_vs() -> None:
    error = refusal(configurations=[{"name": "base"}, {"name": "b", "vs": "zzz"}])
    assert error.field == "configurations[1].vs"
    assert error.mend == "There are: base, b"


def test_vs_itself() -> None:
    error = refusal(configurations=[{"name": "base"}, {"name": "b", "vs": "b"}])
    assert "compared with itself" in error.problem


def test_two_of_one_name() -> None:
    assert "two configurations" in refusal(configurations=[{"name": "a"}] * 2).problem


def test_the_name_of_a_duplicate_is_kept() -> None:
    listed = [{"name": "a"}, {"name": "a.repeat"}]
    assert "kept for the duplicate" in refusal(configurations=listed, baseline_check=True).problem
    assert len(configurations(configurations=listed)) == 2


def test_one_setting_from_two_places() -> None:
    error = refusal(configurations=[{"name": "a", "batch_size": 4}], factors={"batch_size": [1, 8]})
    assert "`batch_size` is set by both configuration `a` and factor `batch_size`" in error.problem


def test_one_optimisation_twice() -> None:
    error = refusal(configurations=[{"name": "a"}, {"name": "b", "optimizations": ["x", "x"]}])
    assert "twice" in error.problem
    error = refusal(factors={"x": OFF_ON, "v": [False, "x"]})
    assert "both factor `x` and factor `v`" in error.problem


def test_a_name_too_long_for_a_folder() -> None:
    factors = {f"{letter}" * 90: [False] for letter in "abc"}
    assert "longer than 200" in refusal(factors=factors, configurations=[{"name": "q"}]).problem


def test_a_configuration_alone_is_not_crossed_with_the_factors() -> None:
    found = configurations(
        configurations=[{"name": "untouched", "alone": True}],
        factors={"kv": {"static": {"cache": "static"}, "grown": {}}, "batch_size": [1, 2]},
        baseline="kv-static.batch_size-1",
    )
    crossed = [f"kv-{kv}.batch_size-{size}" for kv in ("static", "grown") for size in (1, 2)]
    assert list(found) == ["untouched", *crossed]
    assert found["untouched"].levels == {}
    assert {c.vs for c in found.values()} == {None, "kv-static.batch_size-1"}


def test_of_a_level_with_optimisations_the_plainest_is_the_baseline() -> None:
    found = configurations(
        factors={
            "vocabulary": {"tuned": {"optimizations": ["x"]}, "new": {"optimizations": ["y"]}},
            "kv": {"off": {}, "on": {"optimizations": ["z"]}},
        },
        baseline="vocabulary-tuned",
    )
    assert [name for name, c in found.items() if c.vs is None] == ["vocabulary-tuned.kv-off"]
