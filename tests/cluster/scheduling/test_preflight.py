"""What a cluster must have before anything waits for it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray

from benchmarks.cluster.simulated import simulated_plan
from cluster.plan import Plan, WorkerResources
from cluster.scheduling import preflight as module
from cluster.scheduling.preflight import crowded, preflight, room_for
from optim.errors import InputError

H100 = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0}
T4 = {"CPU": 32.0, "GPU": 1.0, "accelerator_type:T4": 1.0}


def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float], after: int = 0) -> None:
    """Let the cluster have these nodes; only from the look `after` on."""
    looks = iter(range(1000))

    def listed() -> list[dict[str, Any]]:
        there = resources if next(looks) >= after else ()
        return [{"Alive": True, "Resources": each} for each in there] + [
            {"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 1000.0}}
        ]

    monkeypatch.setattr(ray, "nodes", listed)
    total = {key: sum(each.get(key, 0.0) for each in resources) for key in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)


def plan(**workers: Any) -> Plan:
    return simulated_plan("x", num_shards=1, workers=WorkerResources(**workers))


def test_workers_are_counted_by_node_and_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, H100, T4)
    assert room_for(WorkerResources(cpus=3, gpus=1)) == 2 + 1
    assert room_for(WorkerResources(cpus=3, gpus=1, accelerator_type="H100")) == 2
    assert room_for(WorkerResources(cpus=0.1)) == 80 + 320
    assert room_for(WorkerResources(cpus=16)) == 2
    line = preflight(plan(count=4, cpus=3, gpus=1))
    assert "room for 3: more workers start when there is more" in line
    assert "room" not in preflight(plan(count=3, cpus=3, gpus=1))


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"gpus": 4}, "workers.gpus: 1 workers x 4 GPUs .* largest node has 2"),
        ({"cpus": 64}, "workers.cpus: 1 workers x 64 CPUs .* largest node has 32"),
        ({"cpus": 16, "gpus": 2}, "no node has 16 CPUs and 2 GPUs at once"),
        ({"accelerator_type": "A100"}, "no node has a A100; there is H100, T4"),
    ],
)
def test_what_fits_on_no_node_is_refused(
    monkeypatch: pytest.MonkeyPatch, workers: dict[str, Any], message: str
) -> None:
    nodes(monkeypatch, H100, T4)
    with pytest.raises(InputError, match=message):
        preflight(plan(**workers))


def test_a_node_that_comes_in_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr(
        "cluster.scheduling.preflight.request_resources", lambda bundles: asked.append(bundles)
    )
    nodes(monkeypatch, H100, after=2)
    preflight(plan(count=2, gpus=1, accelerator_type="H100", start_timeout_s=30))
    bundle = {"CPU": 1.0, "GPU": 1.0, "accelerator_type:H100": 0.001}
    assert asked == [[bundle, bundle], []], "the autoscaler is asked, and asked no longer"
    nodes(monkeypatch, H100, after=900)
    with pytest.raises(InputError, match="start_timeout_s"):
        preflight(plan(gpus=1, start_timeout_s=0.2))


def test_why_a_ray_that_was_started_here_has_fewer_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 1.0})
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(module, "usable_cpus", lambda: 1)
    why = "of this machine's 16: CPU affinity or a control group allows 1"
    for is_here in (True, False):
        monkeypatch.setattr(module, "is_started_here", lambda here=is_here: here)
        line = preflight(plan(count=2))
        assert "room for 1: more workers start when there is more" in line
        assert (why in line) == is_here
        with pytest.raises(InputError) as caught:
            preflight(plan(cpus=2))
        assert "the cluster's largest node has 1" in str(caught.value)
        assert (why in str(caught.value)) == is_here


def test_workers_that_share_cpus_are_told_of() -> None:
    """Whoever starts a node may tell Ray of CPUs that it may not use."""
    here = {"node": "here", "usable_cpus": 2}
    assert list(crowded(plan(cpus=1), [here, here])) == []
    assert list(crowded(plan(cpus=1), [{"node": "older"}] * 9)) == []
    [said] = crowded(plan(cpus=1), [here, here, here, {"node": "there", "usable_cpus": 1}])
    assert said.startswith("here: its workers may keep 2 CPUs busy, and have 3 between them")
