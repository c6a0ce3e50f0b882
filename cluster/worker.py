"""`Worker`: loads the trial's models on one device, runs blocks, commits their cells itself.

A plain class, so that it is tested without a cluster; `RemoteWorker` is the same as a Ray actor.
Completions never travel to the driver: it gets receipts.
"""

from __future__ import annotations

import os
import random
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import ray
import torch

from cluster.completion import Request
from cluster.engine import Engine
from cluster.plan import Block, Cell, Configuration, Plan
from cluster.results import Results
from cluster.rows import (
    Circumstances,
    cell_facts,
    failed_row,
    generation_row,
    likelihood_row,
)
from cluster.sampling import SamplingParams
from optim.cache import cache_factory
from optim.errors import SequenceError
from optim.model import LanguageModel, load, weight_bytes
from optim.registry import apply_all, optimization

WARMUP_PROMPT, WARMUP_TOKENS = "The quick brown fox jumps over the lazy dog. " * 4, 8


@dataclass
class Arm:
    """One configuration, ready to run."""

    configuration: Configuration
    engine: Engine
    weight_bytes_shared: int
    weight_bytes_private: int
    is_warm: bool = False


class Worker:
    """Runs blocks of one trial on one device."""

    def __init__(self, plan: str, index: int) -> None:
        self.plan = Plan.model_validate_json(plan)
        self.name = f"worker-{index}"
        self.node = socket.gethostname()
        self.results = Results(self.plan.output)
        self.arms: dict[str, Arm] = {}
        self.base_tokenizer: Any = None
        self.device = "cpu"
        self._prompts: dict[str, list[dict[str, Any]]] | None = None
        self._use_own_resources()

    def _use_own_resources(self) -> None:
        """As many threads as CPUs were given, and no GPU where none was."""
        resources = self.plan.workers
        # Ray leaves every GPU visible to an actor that asked for none.
        if not resources.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(max(1, int(resources.cpus)))

    def load(self) -> dict[str, Any]:
        """Load the model, apply every configuration's optimisations, warm each up.

        Raises InputError where the model or an artifact cannot be used.
        """
        source = self.plan.model
        base = load(
            source.path,
            revision=source.revision,
            dtype=source.dtype,
            device=source.device,
            trust_remote_code=source.trust_remote_code,
        )
        self.base_tokenizer = base.tokenizer
        if base.device.type == "cuda":
            self.device = torch.cuda.get_device_name(base.device)
        models: dict[str, LanguageModel] = {}
        for configuration in self.plan.configurations:
            key = repr(configuration.optimizations)
            if key not in models:
                chosen = [optimization(o.name, o.settings) for o in configuration.optimizations]
                models[key] = apply_all(base, chosen)
            self.arms[configuration.name] = self._arm(configuration, models[key], base)
        for arm in self.arms.values():
            self._warm_up(arm)
        return {"device": self.device, "node": self.node, "threads": torch.get_num_threads()}

    def _arm(self, configuration: Configuration, lm: LanguageModel, base: LanguageModel) -> Arm:
        engine = Engine(
            lm,
            batch_size=configuration.batch_size,
            cache=cache_factory(configuration.cache),
            prefill_chunk=configuration.prefill_chunk,
        )
        shared, private = weight_bytes(lm.model, base.model)
        return Arm(configuration, engine, shared, private)

    def _warm_up(self, arm: Arm) -> None:
        params = SamplingParams(max_new_tokens=WARMUP_TOKENS)
        count = 2 * arm.configuration.batch_size
        requests = [Request(str(i), WARMUP_PROMPT, params) for i in range(count)]
        arm.is_warm = all(c.error is None for c in arm.engine.generate(requests))

    def run(self, block: str, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Run the cells of a block whose keys are given, in random order; returns receipts."""
        todo = Block.model_validate_json(block)
        cells = [cell for cell in todo.cells if cell.key in set(keys)]
        random.Random(f"{self.plan.shuffle_seed}:{todo.index}").shuffle(cells)
        attempt = uuid.uuid4().hex[:12]
        return [
            self._run_cell(cell, order, attempt, todo.index) for order, cell in enumerate(cells)
        ]

    def _run_cell(self, cell: Cell, order: int, attempt: str, block: int) -> dict[str, Any]:
        arm = self.arms[cell.configuration]
        around = Circumstances(
            run_id=self.plan.run_id,
            attempt=attempt,
            worker=self.name,
            node=self.node,
            device=self.device,
            order_in_block=order,
            batch_size=arm.configuration.batch_size,
            warmup=not arm.is_warm,
        )
        started_at, load_average = datetime.now(UTC), os.getloadavg()[0]
        arm.engine.reset_stats()
        start = perf_counter()
        if cell.kind == "generations":
            rows, wall_s = self._generate(cell, arm, around)
        else:
            rows = self._score(cell, arm, around)
            wall_s = perf_counter() - start
        facts = cell_facts(cell, rows, around) | {
            "block": block,
            "round": 0,
            "wall_s": wall_s,
            "started_at": started_at.isoformat(),
            "load_average": load_average,
            "threads": torch.get_num_threads(),
            **self._memory(arm),
        }
        return asdict(self.results.commit(cell, rows, facts))

    def _memory(self, arm: Arm) -> dict[str, Any]:
        stats = arm.engine.stats
        on_gpu = self.device != "cpu"
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        return {
            "num_steps": stats.num_steps,
            "prefill_s": stats.prefill_s,
            "decode_s": stats.decode_s,
            "weight_bytes_shared": arm.weight_bytes_shared,
            "weight_bytes_private": arm.weight_bytes_private,
            "kv_used_peak_bytes": stats.kv_peak.used_bytes,
            "kv_committed_peak_bytes": stats.kv_peak.committed_bytes,
            "kv_reserved_peak_bytes": stats.kv_peak.reserved_bytes,
            "kv_used_byte_s": stats.kv_used_byte_s,
            "kv_committed_byte_s": stats.kv_committed_byte_s,
            "device_peak_bytes": peak,
        }

    def _generate(
        self, cell: Cell, arm: Arm, around: Circumstances
    ) -> tuple[list[Mapping[str, Any]], float]:
        """Rows in the order of the prompts, and the seconds that the engine took."""
        generation = self.plan.generation
        params = SamplingParams(
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            max_new_tokens=generation.max_new_tokens,
            stop=generation.stop,
        )
        prompts = self._rows(cell)
        rows = {
            p["row"]: failed_row(cell, p["prompt_id"], p["error"], around)
            for p in prompts
            if p["error"] is not None
        }
        places = {p["prompt_id"]: p["row"] for p in prompts}
        requests = [
            Request(p["prompt_id"], p["prompt"], params, cell.seed or 0, p["is_chat"])
            for p in prompts
            if p["error"] is None
        ]
        start = perf_counter()
        completions = list(arm.engine.generate(requests))
        wall_s = perf_counter() - start
        for completion in completions:
            rows[places[completion.request.prompt_id]] = generation_row(
                cell,
                completion,
                around,
                self.base_tokenizer,
                token_times=generation.token_times,
                completion_ids=generation.completion_ids,
            )
        return [rows[place] for place in sorted(rows)], wall_s

    def _score(self, cell: Cell, arm: Arm, around: Circumstances) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = []
        for p in self._rows(cell):
            if p["error"] is not None:
                continue
            candidates = [(-1, p["target"]), *enumerate(p["choices"] or [])]
            for index, text in candidates:
                if text:
                    score = self._likelihood(arm, p, text)
                    rows.append(likelihood_row(cell, p["prompt_id"], index, score, around))
        return rows

    def _likelihood(self, arm: Arm, prompt: Mapping[str, Any], text: str) -> Any:
        try:
            return arm.engine.score(prompt["prompt"], text, is_chat=prompt["is_chat"])
        except SequenceError as error:
            return str(error)

    def _rows(self, cell: Cell) -> list[dict[str, Any]]:
        """The prompts of a cell as dictionaries of the PROMPTS columns."""
        if self._prompts is None:
            self._prompts = {}
            for row in self.results.prompts().to_pylist():
                self._prompts.setdefault(row["dataset"], []).append(row)
        return self._prompts[cell.dataset][cell.start : cell.stop]


RemoteWorker = ray.remote(Worker)
"""`Worker` as an actor; the scheduler gives it its resources and never lets Ray restart it."""
