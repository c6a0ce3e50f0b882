"""A simulated worker that fails as files beside the output say, and writes down what it was asked.

`faults/once-<fault>` is met by one process; `faults/<fault>` by all. Faults: `kill`, `hang`, and
`raise`, `memory`, `exhaust` with `-<configuration>`; `load-kill`, `load-raise`, `load-memory` with
`-<configuration>`. They come after the first cell of a call is committed, or in the load.

`faults/hold-<from>-<to>` holds the executions that begin as number <from> to <to> of the trial,
until the file is gone: what has to happen meanwhile happens, however busy the machine is.
"""

from __future__ import annotations

import mmap
import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import ray

from benchmarks.cluster.simulated import SimulatedWorker
from cluster.plan import Block, Cell, Plan

HELD_AT_MOST_S = 150.0


def set_fault(plan: Plan, name: str) -> None:
    folder = Path(plan.output).parent / "faults"
    folder.mkdir(exist_ok=True)
    (folder / name).touch()


def held(plan: Plan, first: int, last: int) -> Path:
    """Executions from number `first` to `last` wait, until the file that is returned is removed."""
    name = f"hold-{first}-{last}"
    set_fault(plan, name)
    return Path(plan.output).parent / "faults" / name


def events(plan: Plan) -> Counter[str]:
    """How often each thing was done: `open`, `load <configuration>`, `run`, `begin`, `cell`."""
    file = Path(plan.output).parent / "events"
    lines = file.read_text().splitlines() if file.exists() else []
    return Counter(line.rsplit(" ", 1)[0] for line in lines)


def pids(plan: Plan) -> list[int]:
    """Of the processes that have opened the model, in order."""
    lines = (Path(plan.output).parent / "events").read_text().splitlines()
    return [int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("open ")]


class FaultyWorker(SimulatedWorker):
    def __init__(self, plan: str, index: int) -> None:
        super().__init__(plan, index)
        self.folder = Path(self.plan.output).parent

    def _note(self, event: str) -> None:
        with (self.folder / "events").open("a") as file:
            file.write(f"{event} {os.getpid()}\n")

    def _meets(self, fault: str) -> bool:
        folder = self.folder / "faults"
        if (folder / fault).exists():
            return True
        try:
            (folder / f"once-{fault}").unlink()
        except FileNotFoundError:
            return False
        return True

    def _wait_where_held(self) -> None:
        number = events(self.plan)["begin"]
        for hold in (self.folder / "faults").glob("hold-*-*"):
            first, last = map(int, hold.name.split("-")[1:])
            if first <= number <= last:
                until = monotonic() + HELD_AT_MOST_S
                while hold.exists():
                    assert monotonic() < until, f"{hold.name} is still there"
                    sleep(0.02)

    def open(self) -> dict[str, Any]:
        self._note("open")
        return super().open()

    def load_configuration(self, name: str) -> None:
        self._note(f"load {name}")
        if self._meets(f"load-kill-{name}"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._meets(f"load-raise-{name}"):
            raise RuntimeError(f"no {name} here")
        if self._meets(f"load-memory-{name}"):
            raise MemoryError(f"no room for {name}")
        super().load_configuration(name)

    def run(self, block: str, keys: Sequence[str]) -> list[dict[str, Any]]:
        self._note("run")
        return super().run(block, keys)

    def run_cell(self, cell: Cell, attempt: str, order: int, block: Block) -> dict[str, Any]:
        name = cell.configuration
        self._note("begin")
        if self._meets(f"raise-{name}"):
            raise RuntimeError(f"no more of {name}\nat all")
        if self._meets(f"memory-{name}"):
            raise MemoryError
        if self._meets(f"exhaust-{name}"):
            taken = []
            while True:
                taken.append(mmap.mmap(-1, 64 << 20))
                taken[-1].madvise(mmap.MADV_HUGEPAGE)
                taken[-1][:: mmap.PAGESIZE] = bytes(len(taken[-1]) // mmap.PAGESIZE)
                sleep(0.005)
        self._wait_where_held()
        receipt = super().run_cell(cell, attempt, order, block)
        self._note("cell")
        if self._meets("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._meets("hang"):
            sleep(3600)
        return receipt


RemoteFaulty = ray.remote(FaultyWorker)
