"""Whether the cluster has what a plan asks for, before anything waits for it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from time import monotonic, sleep
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from cluster.local_node import is_started_here
from cluster.plan import Plan, WorkerResources
from optim.allotment import usable_cpus
from optim.errors import InputError


def preflight(plan: Plan) -> str:
    """What is asked for and what the cluster has, in a line.

    A trial begins with the workers that there is room for. Raises InputError where there is room
    for none, after `start_timeout_s`: such a request would wait forever.
    """
    wanted = plan.workers
    room = room_for(wanted) or _room_in_time(wanted)
    if not room:
        raise _too_small(wanted)
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    asked = f"{wanted.count} workers x {wanted.cpus:g} CPUs, {wanted.gpus:g} GPUs"
    there = f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
    there += limit_text()
    line = f"asking for {asked}; the cluster has {there}"
    if room < wanted.count:
        line += f", room for {room}: more workers start when there is more"
    return line


def crowded(plan: Plan, workers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Nodes that were told of more CPUs than they may use, by what workers say of themselves."""
    found = list(workers)
    counts = Counter(str(worker.get("node")) for worker in found)
    usable = {str(worker.get("node")): worker.get("usable_cpus") for worker in found}
    for node, count in counts.items():
        cpus, asked = usable[node], count * plan.workers.cpus
        if isinstance(cpus, int) and asked > cpus:
            yield (
                f"{node}: its workers may keep {cpus} CPUs busy, and have {asked:g} between them: "
                "they wait for each other, and times with them"
            )


def limit_text() -> str:
    """Why a Ray that was started here has fewer CPUs than the machine."""
    usable, machine = usable_cpus(), os.cpu_count() or 1
    if usable >= machine or not is_started_here():
        return ""
    return f" (of this machine's {machine}: CPU affinity or a control group allows {usable})"


def _room_in_time(wanted: WorkerResources) -> int:
    """Ask the autoscaler for nodes, and wait for the first that a worker fits on."""
    if not wanted.start_timeout_s:
        return 0
    bundle: dict[str, float] = {"CPU": wanted.cpus} | ({"GPU": wanted.gpus} if wanted.gpus else {})
    if wanted.accelerator_type is not None:
        bundle[f"accelerator_type:{wanted.accelerator_type}"] = 0.001
    until = monotonic() + wanted.start_timeout_s
    request_resources(bundles=[bundle] * wanted.count)
    try:
        while not (room := room_for(wanted)) and monotonic() < until:
            sleep(min(1.0, max(0.0, until - monotonic())))
    finally:
        # From here on the workers themselves are the demand.
        request_resources(bundles=[])
    return room


def room_for(wanted: WorkerResources) -> int:
    """How many workers fit on the cluster's nodes as they are, were nothing else on them."""
    return sum(_fit(node.get("Resources", {}), wanted) for node in _nodes())


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _fit(resources: dict[str, float], wanted: WorkerResources) -> int:
    kind = wanted.accelerator_type
    if kind is not None and not resources.get(f"accelerator_type:{kind}"):
        return 0
    counts = [
        int(resources.get(name, 0.0) / each + 1e-9)
        for name, each in (("CPU", wanted.cpus), ("GPU", wanted.gpus))
        if each
    ]
    return min(counts)


def _too_small(wanted: WorkerResources) -> InputError:
    nodes = [node.get("Resources", {}) for node in _nodes()]
    kind = wanted.accelerator_type
    if kind is not None and not any(node.get(f"accelerator_type:{kind}") for node in nodes):
        kinds = sorted({key.removeprefix("accelerator_type:") for node in nodes for key in node
                        if key.startswith("accelerator_type:")})  # fmt: skip
        return InputError(
            f"no node has a {kind}; there is {', '.join(kinds) or 'no accelerator'}",
            field="workers.accelerator_type",
            mend="Name one that is there, or start a node that has it",
        )
    for resource, each in (("GPU", wanted.gpus), ("CPU", wanted.cpus)):
        largest = max((node.get(resource, 0.0) for node in nodes), default=0.0)
        if each > largest:
            return InputError(
                f"{wanted.count} workers x {each:g} {resource}s are asked for, and the cluster's "
                f"largest node has {largest:g}{limit_text() if resource == 'CPU' else ''}",
                field=f"workers.{resource.lower()}s",
                mend=f"Ask for fewer {resource}s, start a larger node, or set "
                "workers.start_timeout_s where nodes come on demand",
            )
    return InputError(
        f"no node has {wanted.cpus:g} CPUs and {wanted.gpus:g} GPUs at once",
        field="workers",
        mend="Ask for fewer, or start a larger node",
    )
