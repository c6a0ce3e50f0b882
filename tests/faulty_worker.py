"""A simulated worker that fails as files beside the output say, and writes down what it was asked.

`faults/once-<fault>` is met by one process; `faults/<fault>` by all. Faults: `kill`, `hang`, and
`raise`, `memory`, `exhaust` with `-<configuration>`; `load-kill`, `load-raise`, `load-memory` with
`-<configuration>`. They come after the first cell of a call is committed, or in the load.
"""

from __future__ import annotations

import mmap
import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import Any

import ray

from benchmarks.simulated import SimulatedWorker
from cluster.plan import Block, Cell, Plan


def set_fault(plan: Plan, name: str) -> None:
    folder = Path(plan.output).parent / "faults"
    folder.mkdir(exist_ok=True)
    (folder / name).touch()


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
        receipt = super().run_cell(cell, attempt, order, block)
        self._note("cell")
        if self._meets("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._meets("hang"):
            sleep(3600)
        return receipt


RemoteFaulty = ray.remote(FaultyWorker)
