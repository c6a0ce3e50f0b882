"""Plans: what decides a trial's identity, and how two trials differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, Field

import optim.model
import optim.registry
from cluster.plan import Plan
from cluster.results.results import write_prompts
from cluster.storage.open_store import LocalStore
from jobs.spec.configurations import expand
from jobs.spec.shards import with_shards
from jobs.spec.trial_spec import TrialSpec
from jobs.trial.planning import describe_difference, make_plan
from optim.errors import InputError


class FakeOptimization(BaseModel, extra="allow"):
    """Any settings; its artifact lies at `place`, and the file's text is its content."""

    places: ClassVar[frozenset[str]] = frozenset({"place"})
    name: str = Field(exclude=True)
    place: str | None = None

    @property
    def stage(self) -> str:
        return "cache" if self.name == "cache" else "weights"

    def content(self) -> str:
        return "" if self.place is None else Path(self.place).read_text()


@pytest.fixture(autouse=True)
def _fake_model_and_optimisations(monkeypatch: pytest.MonkeyPatch) -> None:
    def optimization(name: str, settings: Mapping[str, Any]) -> object:
        if name not in ("fast", "cache"):
            raise InputError(f"there is no optimisation called {name!r}", field="optimizations")
        return FakeOptimization(name=name, **settings)

    monkeypatch.setattr(optim.registry, "optimization", optimization)
    monkeypatch.setattr(optim.model, "fingerprint", lambda path, *, revision=None: "f" * 64)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "qa.jsonl"
    rows = [{"prompt": f"p{n}", "target": f"t{n}"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan_of(prompts: Path, **changes: Any) -> tuple[Plan, list[dict[str, Any]]]:
    data = {"model": "demo", "datasets": [str(prompts)], "output": "out"} | changes
    return make_plan(TrialSpec.model_validate(data), "trial.yaml")


def refusal(prompts: Path, **changes: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        plan_of(prompts, **changes)
    return caught.value


def differences(one: Plan, other: Plan) -> list[str]:
    return describe_difference(one.model_dump(mode="json"), other.model_dump(mode="json"))


def test_rows_of_datasets_are_contiguous(prompts: Path, tmp_path: Path) -> None:
    second = {"path": str(prompts), "name": "again", "limit": 3, "shards": 2}
    plan, rows = plan_of(prompts, datasets=[str(prompts), second])
    assert [(d.name, d.first_row, d.num_prompts, d.num_shards) for d in plan.datasets] == [
        ("qa", 0, 5, 5),
        ("again", 5, 3, 2),
    ]
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4, 0, 1, 2]
    assert all(d.has_targets for d in plan.datasets)
    write_prompts(LocalStore(tmp_path / "out"), rows)


def test_a_plan_is_json_both_ways(prompts: Path) -> None:
    plan, _ = plan_of(prompts, configurations=[{"name": "base"}], seeds=2)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert Path(plan.output).is_absolute()
    assert plan.model.fingerprint == "f" * 64
    assert len(plan.run_id) == 12


def test_cells_have_keys_of_their_own(prompts: Path) -> None:
    twin = {"path": str(prompts), "name": "twin"}
    plan, _ = plan_of(prompts, datasets=[str(prompts), twin], factors={"fast": [False, True]})
    keys = [cell.key for block in plan.blocks() for cell in block.cells]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    "changes",
    [{"workers": 4}, {"output": "s3://elsewhere/x"}, {"shuffle_seed": 5}],
)
def test_what_decides_nothing(prompts: Path, changes: dict[str, Any]) -> None:
    (one, _), (other, _) = plan_of(prompts), plan_of(prompts, **changes)
    assert one.run_id == other.run_id
    assert one.configurations == other.configurations
    assert differences(one, other) == []


def test_scorers_do_not_change_the_run(prompts: Path) -> None:
    (one, _) = plan_of(prompts)
    (other, _) = plan_of(prompts, datasets=[{"path": str(prompts), "scorers": ["exact"]}])
    assert one.run_id == other.run_id


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"generation": {"temperature": 0.8}}, "generation.temperature: 0.0 -> 0.8"),
        ({"seeds": 2}, "seeds: [0] -> [0, 1]"),
        ({"dtype": "bfloat16"}, "model.dtype: 'auto' -> 'bfloat16'"),
        ({"likelihoods": False}, "likelihoods: True -> False"),
        ({"engine": {"batch_size": 4}}, "configurations[baseline].batch_size: 8 -> 4"),
        ({"baseline_check": False}, "configurations[baseline.repeat]: present -> absent"),
    ],
)
def test_what_decides(prompts: Path, changes: dict[str, Any], line: str) -> None:
    (one, _), (other, _) = plan_of(prompts), plan_of(prompts, **changes)
    assert one.run_id != other.run_id
    assert line in differences(one, other)


def test_other_prompts_of_the_same_name(prompts: Path) -> None:
    one, _ = plan_of(prompts)
    prompts.write_text(prompts.read_text().replace("p3", "q3"))
    other, _ = plan_of(prompts)
    assert one.run_id != other.run_id
    assert differences(one, other) == ["datasets[qa]: its prompts differ"]


def test_another_model(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = plan_of(prompts)
    monkeypatch.setattr(optim.model, "fingerprint", lambda path, *, revision=None: "e" * 64)
    other, _ = plan_of(prompts)
    assert differences(one, other) == ["model: its files differ"]
    assert one.configurations[0].fingerprint != other.configurations[0].fingerprint


def test_another_version(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = plan_of(prompts)
    monkeypatch.setattr("jobs.trial.planning.version", lambda name: "99")
    other, _ = plan_of(prompts)
    assert differences(one, other) == ["the version of Optrial differs"]


def test_a_model_elsewhere_is_the_same_model(prompts: Path, tmp_path: Path) -> None:
    one, _ = plan_of(prompts, model=str(tmp_path))
    other, _ = plan_of(prompts)
    assert one.run_id == other.run_id
    assert differences(one, other) == []


def test_two_datasets_of_one_name(prompts: Path) -> None:
    error = refusal(prompts, datasets=[str(prompts), str(prompts)])
    assert (error.source, error.field) == ("trial.yaml", "datasets[1].name")


def test_unknown_optimisation(prompts: Path) -> None:
    error = refusal(prompts, factors={"quick": [False, True]})
    assert error.source == "trial.yaml"
    assert "there is no optimisation called 'quick'" in error.problem


def test_errors_of_comparisons_name_the_spec(prompts: Path) -> None:
    assert refusal(prompts, baseline="none").source == "trial.yaml"


def test_a_cache_is_not_named_beside_an_optimisation_that_brings_its_own(prompts: Path) -> None:
    arms = [{"name": "base"}, {"name": "both", "cache": "static", "optimizations": ["cache"]}]
    with pytest.raises(InputError, match="`both` has `cache: static`, and cache brings a cache"):
        plan_of(prompts, configurations=arms)


def test_sharing_prompts_makes_other_cells_and_blocks_of_all_seeds(prompts: Path) -> None:
    alone, _ = plan_of(prompts, seeds=3)
    shared, _ = plan_of(prompts, seeds=3, share_prompts="seeds")
    assert alone.run_id != shared.run_id
    keys = [{cell.key for block in plan.blocks() for cell in block.cells}
            for plan in (alone, shared)]  # fmt: skip
    assert len(keys[0]) == len(keys[1])
    assert not keys[0] & keys[1]
    generations = [block for block in shared.blocks() if block.kind == "generations"]
    assert all({cell.seed for cell in block.cells} == {0, 1, 2} for block in generations)
    assert len({block.index for block in shared.blocks()}) == len(list(shared.blocks()))


def test_weights_are_ordered_for_the_largest_batch_of_the_trial(prompts: Path) -> None:
    sizes = [{"name": f"b{n}", "batch_size": n} for n in (1, 2, 4)]
    small, _ = plan_of(prompts, configurations=sizes[:2])
    large, _ = plan_of(prompts, configurations=sizes)
    stated, _ = plan_of(prompts, configurations=sizes[:2], weight_order="rows")
    assert [p.weight_order for p in (small, large, stated)] == ["columns", "rows", "rows"]
    own = [{c.name: c.fingerprint for c in p.configurations} for p in (small, large, stated)]
    assert own[0]["b1"] != own[1]["b1"], "last bits may differ"
    assert own[1]["b1"] == own[2]["b1"]
    assert small.run_id != stated.run_id
    for elsewhere in ({"dtype": "bfloat16"}, {"workers": {"gpus": 1}}):
        plan, _ = plan_of(prompts, configurations=sizes[:1], **elsewhere)
        assert plan.weight_order == "rows"


def test_artifacts_count_by_content_and_not_by_place(prompts: Path, tmp_path: Path) -> None:
    for name, text in (("one", "same"), ("two", "same"), ("three", "other")):
        (tmp_path / name).write_text(text)

    def plan(name: str) -> Plan:
        chosen = {"fast": {"place": str(tmp_path / name), "level": 2}}
        arms = [{"name": "base"}, {"name": "fast", "optimizations": [chosen]}]
        return plan_of(prompts, configurations=arms)[0]

    one, two, three = plan("one"), plan("two"), plan("three")
    assert one.configuration("fast").optimizations[0].fingerprint == "same"
    assert one.run_id == two.run_id
    assert one.configuration("fast").fingerprint == two.configuration("fast").fingerprint
    assert differences(one, two) == []
    assert one.run_id != three.run_id
    assert differences(one, three) == [
        "configurations[fast].optimizations[fast]: its artifact differs"
    ]


@pytest.mark.parametrize(("num_arms", "num_sets", "shards"), [(1, 1, 10), (6, 1, 13), (6, 3, 8)])
def test_shards_are_as_many_as_the_verdicts_need(num_arms: int, num_sets: int, shards: int) -> None:
    """No p of n units is below 2^(1-n): 24 tests at 0.8 %, the next look's level, take 13."""
    spec = TrialSpec.model_validate(
        {
            "model": "demo",
            "datasets": [{"path": f"{i}.jsonl"} for i in range(num_sets)],
            "configurations": [
                {"name": "base"},
                *({"name": f"c{i}", "batch_size": 2 + i, "vs": "base"} for i in range(num_arms)),
            ],
            "output": "out",
        }
    )
    found = with_shards(spec.datasets, expand(spec), spec.analysis)
    assert [d.shards for d in found] == [shards] * num_sets
    given = spec.datasets[0].model_copy(update={"shards": 3})
    assert with_shards([given], expand(spec), spec.analysis)[0].shards == 3
