"""What to add to a trial so that its open primary verdicts can be settled, within a budget.

Seeds of the prompts that there are, or more prompts at the seeds that there are: whichever leaves
the fewest verdicts open, then whichever is fewer completions. Only the configurations of open
verdicts and their references run on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile

from cluster.plan import Plan
from jobs.analysis.findings import Findings
from jobs.analysis.sample_size import Need
from optim.errors import InputError

Key = tuple[str, str]
"""(configuration, metric)"""


@dataclass(frozen=True)
class Addition:
    """More of a trial."""

    configurations: tuple[str, ...]
    num_rows: int
    settles: tuple[Key, ...]
    """Open verdicts that it is meant for."""
    left_open: tuple[Key, ...]
    """Those that it can do nothing for."""
    seeds: tuple[tuple[str, ...], ...] = ()
    """Of each seed more, the configurations that run it: no more than each one needs."""
    prompts: Mapping[str, int] = field(default_factory=dict)
    """Dataset -> more prompts of it."""
    wanted_rows: int = 0
    """What the verdicts need; more than `num_rows` where the budget cuts it short."""

    @property
    def is_cut(self) -> bool:
        return self.num_rows < self.wanted_rows


def addition(found: Findings, available: Mapping[str, int], max_rows: int) -> Addition | None:
    """The cheapest addition; None where nothing primary is open.

    `available` is how many prompts of each dataset have not been run. InputError where the budget
    does not pay for anything, and where nothing that could be added would help.
    """
    needs = found.needs
    if not needs:
        return None
    ways = [*_by_seeds(found, needs), *_by_prompts(found, needs, available)]
    if not ways:
        reasons = "; ".join(
            f"{configuration}, {metric}: {need.reason or 'more prompts, and there are none'}"
            for (configuration, metric), need in needs.items()
        )
        raise InputError(
            f"nothing that could be added would settle what is open ({reasons})",
            source=found.plan.output,
            mend="Run a trial of more prompts",
        )
    best = min(ways, key=lambda way: (len(way.left_open), way.wanted_rows))
    return _cut(best, found.plan, max_rows)


def _by_seeds(found: Findings, needs: Mapping[Key, Need]) -> Iterable[Addition]:
    helped = {key: need.num_seeds for key, need in needs.items() if need.num_seeds}
    if not helped:
        return
    wanted: dict[str, int] = {}
    for (name, _), count in helped.items():
        wanted[name] = max(count, wanted.get(name, 0))
    seeds = tuple(
        _arms(found, [name for name, count in wanted.items() if count > i])
        for i in range(max(wanted.values()))
    )
    left = tuple(key for key in needs if key not in helped)
    rows = sum(map(len, seeds)) * _prompts_there(found.plan)
    yield Addition(seeds[0], rows, tuple(helped), left, seeds, {}, rows)


def _by_prompts(
    found: Findings, needs: Mapping[Key, Need], available: Mapping[str, int]
) -> Iterable[Addition]:
    total = sum(available.values())
    # Half of what is needed would cost a look, and settle nothing.
    wanted_by = {key: need.num_prompts for key, need in needs.items() if need.num_prompts}
    helped = {key: count for key, count in wanted_by.items() if count <= total}
    if not helped:
        return
    configurations = _arms(found, [name for name, _ in helped])
    wanted = max(helped.values())
    per_prompt = len(configurations) * len(found.plan.seeds)
    prompts = _shared_out(min(wanted, total), found.plan, available)
    left = tuple(key for key in needs if key not in helped)
    yield Addition(
        configurations,
        sum(prompts.values()) * per_prompt,
        tuple(helped),
        left,
        (),
        prompts,
        wanted * per_prompt,
    )


def _arms(found: Findings, names: Sequence[str]) -> tuple[str, ...]:
    """The configurations and their references, in the order of the plan."""
    wanted = {*names, *(found.of(name).comparison.vs for name in names)}
    return tuple(c.name for c in found.plan.configurations if c.name in wanted)


def _prompts_there(plan: Plan) -> int:
    return sum(d.num_prompts for d in plan.datasets if d.generates)


def _shared_out(num: int, plan: Plan, available: Mapping[str, int]) -> dict[str, int]:
    """Prompts of each dataset, as evenly as they are there."""
    shares = dict.fromkeys((name for name, there in available.items() if there), 0)
    while sum(shares.values()) < num:
        open_ = [name for name in shares if shares[name] < available[name]]
        each = max(1, (num - sum(shares.values())) // len(open_))
        for name in open_:
            room = num - sum(shares.values())
            shares[name] += min(each, available[name] - shares[name], room)
    return {name: count for name, count in shares.items() if count}


def _cut(wanted: Addition, plan: Plan, max_rows: int) -> Addition:
    """As much of it as the budget pays for."""
    if wanted.num_rows <= max_rows:
        return wanted
    if not wanted.seeds:
        unit = len(wanted.configurations) * len(plan.seeds)
        _require_affordable("prompt at these seeds", unit, wanted, max_rows)
        prompts = _shared_out(max_rows // unit, plan, wanted.prompts)
        return replace(wanted, prompts=prompts, num_rows=sum(prompts.values()) * unit)
    costs = [len(arms) * _prompts_there(plan) for arms in wanted.seeds]
    _require_affordable("seed of these prompts", costs[0], wanted, max_rows)
    paid = list(takewhile(lambda total: total <= max_rows, accumulate(costs)))
    return replace(wanted, seeds=wanted.seeds[: len(paid)], num_rows=paid[-1])


def _require_affordable(what: str, cost: int, wanted: Addition, max_rows: int) -> None:
    if max_rows < cost:
        raise InputError(
            f"the budget is {max_rows:,} completions, and one more {what} takes {cost:,}",
            field="--max-rows, --max-device-minutes",
            mend=f"Give at least {cost:,} completions; what is open needs {wanted.wanted_rows:,}",
        )


def rows_within(found_s_per_row: float | None, max_device_s: float) -> int:
    """Completions that a device time pays for, at what one took so far."""
    if not found_s_per_row or not math.isfinite(found_s_per_row):
        raise InputError(
            "it is not known how long a completion takes",
            field="--max-device-minutes",
            mend="Give --max-rows",
        )
    return int(max_device_s / found_s_per_row)
