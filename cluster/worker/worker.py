"""`Worker`: loads the trial's models on one device, runs blocks, commits their cells itself.

A plain class, so that it is tested without a cluster; `cluster.worker.actor` makes an actor of it.
Completions never travel to the driver: it gets receipts.
"""

from __future__ import annotations

import os
import random
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import torch

from cluster.conformance.architecture import require_source
from cluster.conformance.ragged import require_steady
from cluster.engine.completion import Completion, Request
from cluster.engine.engine import Engine
from cluster.engine.prefixes import PrefixStore
from cluster.engine.sampling import SamplingParams
from cluster.plan import Block, Cell, Configuration, Plan
from cluster.results.results import Results
from cluster.worker.loaded_configuration import Arm, load_source, make_arm, order_weights
from cluster.worker.node_cache import NodeCache
from cluster.worker.rows import (
    Circumstances,
    cell_facts,
    failed_row,
    generation_row,
    likelihood_row,
)
from optim.allotment import available_memory_bytes, usable_cpus
from optim.errors import InputError, SequenceError
from optim.model import LanguageModel, fingerprint
from optim.names import is_exact, stage_of
from optim.optimization import Optimization
from optim.registry import apply_all, optimization


class Worker:
    """Runs blocks of one trial on one device."""

    def __init__(self, plan: str, index: int) -> None:
        self.plan = Plan.model_validate_json(plan)
        self.name = f"worker-{index}"
        self.node = socket.gethostname()
        self.results = Results(self.plan.output)
        self.arms: dict[str, Arm] = {}
        self.base: LanguageModel | None = None
        self.base_tokenizer: Any = None
        cache = self.plan.workers.node_cache
        self._cache = None if cache is None else NodeCache(cache)
        self._models: dict[str, LanguageModel] = {}  # by their optimisations
        self._steady: set[tuple[Any, ...]] = set()
        self.device = "cpu"
        self._prompts: dict[str, list[dict[str, Any]]] | None = None
        self._prefixes: dict[str, PrefixStore] = {}  # of the block, by `Arm.prefill`
        self._use_own_resources()

    def _use_own_resources(self) -> None:
        """As many threads as CPUs were given, and no GPU where none was."""
        resources = self.plan.workers
        # Ray leaves every GPU visible to an actor that asked for none.
        if not resources.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # Ray may have been told of more CPUs than this process may run on.
        torch.set_num_threads(max(1, min(int(resources.cpus), usable_cpus())))

    def open(self) -> dict[str, Any]:
        """Load the model that every configuration starts from; what this worker runs on.

        Raises InputError where the model cannot be used.
        """
        source = self.plan.model
        if self._cache is not None:
            source = self._cache.model(source)
        # Read once more, and from then on in the page cache: other weights on one node would lie
        # under the keys of those that were planned with.
        if source.fingerprint not in ("", fingerprint(source.path, revision=source.revision)):
            raise InputError(
                "the model is not the one that the trial was planned with",
                source=source.path,
                field="model",
                mend="Leave its files alone while a trial runs, and let all nodes see the same",
            )
        require_source(source, self.plan.configurations)
        self.base = load_source(source)
        self.base_tokenizer = self.base.tokenizer
        if self.base.device.type == "cuda":
            self.device = torch.cuda.get_device_name(self.base.device)
        return {
            "worker": self.name,
            "device": self.device,
            "node": self.node,
            "pid": os.getpid(),
            "threads": torch.get_num_threads(),
            "usable_cpus": usable_cpus(),
        }

    def load_configuration(self, name: str) -> None:
        """Apply a configuration's optimisations and warm it up.

        Raises InputError where an artifact cannot be used.
        """
        assert self.base is not None, "open() comes first"
        configuration = self.plan.configuration(name)
        key = repr(configuration.optimizations)
        if key not in self._models:
            made = apply_all(self.base, self._optimizations(configuration))
            order_weights(made.model, self.plan.weight_order)
            self._models[key] = made
        arm = make_arm(configuration, self._models[key], self.base)
        self._require_steady(arm, key)
        arm.warm_up()
        self.arms[name] = arm

    def _require_steady(self, arm: Arm, model: str) -> None:
        """InputError where a model's loaded weights give something else in a ragged batch."""
        own = arm.configuration
        seen = (model, own.cache, own.batch_size > 1, own.prefill_chunk)
        if seen not in self._steady:
            caches = [o.name for o in own.optimizations if stage_of(o.name) == "cache"]
            exact = all(is_exact(name) for name in caches)
            require_steady(arm.engine, is_exact=exact, source=self.plan.model.path)
            self._steady.add(seen)

    def load(self) -> dict[str, Any]:
        """All of it: `open`, then every configuration."""
        facts = self.open()
        for configuration in self.plan.configurations:
            self.load_configuration(configuration.name)
        return facts

    def _optimizations(self, configuration: Configuration) -> list[Optimization]:
        """Of a configuration; InputError where an artifact is not the one that was planned with."""
        found = []
        for planned in configuration.optimizations:
            chosen = planned if self._cache is None else self._cache.optimization(planned)
            made = optimization(chosen.name, chosen.settings)
            if made.content() != chosen.fingerprint:
                raise InputError(
                    f"the artifact of {chosen.name} is not the one that the trial was planned with",
                    field=f"optimizations.{chosen.name}",
                    mend="Leave artifacts alone while a trial runs, and let all nodes see the same",
                )
            found.append(made)
        return found

    def run(self, block: str, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Run the cells of a block whose keys are given, in random order; returns receipts."""
        todo = Block.model_validate_json(block)
        groups = self._groups(todo, set(keys))
        random.Random(f"{self.plan.shuffle_seed}:{todo.index}").shuffle(groups)
        attempt = uuid.uuid4().hex[:12]
        receipts = []
        try:
            for order, cells in enumerate(groups):
                receipts += self._run_group(cells, order, attempt, todo)
        finally:
            for store in self._prefixes.values():
                store.clear()
            self._prefixes.clear()
        return [receipt for receipt in receipts if receipt["key"] in set(keys)]

    def replay(self, block: str, key: str, prompt_id: str) -> list[Mapping[str, Any]]:
        """The rows of one prompt in the cell `key`, made again among the same others, uncommitted.

        What runs beside a sequence can change its last bits, so the cell's other prompts are run as
        far as needed.
        """
        todo = Block.model_validate_json(block)
        (cells,) = self._groups(todo, {key})
        cell = next(cell for cell in cells if cell.key == key)
        arm = self.arms[cell.configuration]
        around = self._around(arm, "replay", order=0)
        prompt = next(p for p in self._rows(cell) if p["prompt_id"] == prompt_id)
        arm.engine.prefixes = None
        if todo.kind == "likelihoods":
            return self._score([prompt], cell, arm, around)
        made: dict[tuple[int, str], Completion] = {}
        if prompt["error"] is None:
            arm.engine.prefixes = self._prefix_store(arm)
            requests = self._requests(cells)
            self._share(arm.engine, requests)
            for completion in arm.engine.generate(requests):
                made[completion.request.seed, completion.request.prompt_id] = completion
                if (cell.seed or 0, prompt_id) in made:
                    break
        return [self._row(prompt, cell, made, around)]

    def _groups(self, block: Block, keys: set[str]) -> list[list[Cell]]:
        """The cells that one call of an engine runs together.

        One each, or all seeds of a configuration where they share prompts; then all of them again
        where one is missing, since what runs beside a sequence can change its last bits.
        """
        if block.kind != "generations" or self.plan.share_prompts == "none":
            return [[cell] for cell in block.cells if cell.key in keys]
        groups: dict[str, list[Cell]] = {}
        for cell in block.cells:
            groups.setdefault(cell.configuration, []).append(cell)
        return [cells for cells in groups.values() if keys & {cell.key for cell in cells}]

    def _run_group(
        self, cells: list[Cell], order: int, attempt: str, block: Block
    ) -> list[dict[str, Any]]:
        arm = self.arms[cells[0].configuration]
        around = self._around(arm, attempt, order)
        started_at, load_average = datetime.now(UTC), os.getloadavg()[0]
        arm.engine.reset_stats()
        start = perf_counter()
        if block.kind == "generations":
            rows, wall_s, prefix_s = self._generate(cells, arm, around)
        else:
            arm.engine.prefixes = None
            rows = [self._score(self._rows(cell), cell, arm, around) for cell in cells]
            wall_s, prefix_s = perf_counter() - start, 0.0
        common = {
            "block": block.index,
            "round": block.round,
            "joint_cells": len(cells),
            "wall_s": wall_s / len(cells),
            "prefix_s": prefix_s / len(cells),
            "started_at": started_at.isoformat(),
            "load_average": load_average,
            "threads": torch.get_num_threads(),
            **arm.facts(len(cells)),
        }
        receipts = []
        for cell, own in zip(cells, rows, strict=True):
            facts = cell_facts(cell, own, around) | common
            receipt = asdict(self.results.commit(cell, own, facts))
            self.committed(cell, receipt, facts)
            receipts.append(receipt)
        return receipts

    def committed(self, cell: Cell, receipt: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Called for each cell that was run, whether its commit was the first one or not."""

    def _around(self, arm: Arm, attempt: str, order: int) -> Circumstances:
        return Circumstances(
            run_id=self.plan.run_id,
            attempt=attempt,
            worker=self.name,
            node=self.node,
            device=self.device,
            order_in_block=order,
            batch_size=arm.configuration.batch_size,
            warmup=not arm.is_warm,
        )

    def _prefix_store(self, arm: Arm) -> PrefixStore | None:
        """Where a call of the arm finds prompts that were prefilled before."""
        if self.plan.share_prompts == "none":
            return None
        if self.plan.share_prompts == "seeds":
            return PrefixStore()
        if arm.prefill not in self._prefixes:
            self._prefixes[arm.prefill] = PrefixStore(keeps=True, max_bytes=self._prefix_bytes())
        return self._prefixes[arm.prefill]

    def _prefix_bytes(self) -> int:
        """A quarter of what is free, for all workers that may share the machine."""
        if self.device != "cpu":
            return int(torch.cuda.mem_get_info()[0]) // 4
        return available_memory_bytes() // (4 * self.plan.workers.count)

    def _generate(
        self, cells: list[Cell], arm: Arm, around: Circumstances
    ) -> tuple[list[list[Mapping[str, Any]]], float, float]:
        """Each cell's rows in the order of the prompts; seconds of the call, and of prefixes."""
        prompts = self._rows(cells[0])
        requests = self._requests(cells)
        engine = arm.engine
        engine.prefixes = self._prefix_store(arm)
        prefix_s = self._share(engine, requests)
        start = perf_counter()
        completions = list(engine.generate(requests))
        wall_s = perf_counter() - start - engine.stats.audit_s
        made = {(c.request.seed, c.request.prompt_id): c for c in completions}
        rows = [[self._row(p, cell, made, around) for p in prompts] for cell in cells]
        return rows, wall_s, prefix_s

    def _share(self, engine: Engine, requests: list[Request]) -> float:
        """Prefill what all configurations share; seconds that it took."""
        if engine.prefixes is None:
            return 0.0
        engine.prefixes.num_prefills = 0
        if self.plan.share_prompts != "configurations":
            return 0.0
        start = perf_counter()
        engine.share(requests)
        if engine.lm.meter is not None:
            engine.lm.meter.reset()
        return perf_counter() - start

    def _requests(self, cells: list[Cell]) -> list[Request]:
        prompts = self._rows(cells[0])
        return [self._request(p, cell) for p in prompts if p["error"] is None for cell in cells]

    def _request(self, prompt: Mapping[str, Any], cell: Cell) -> Request:
        generation = self.plan.generation_of(cell.dataset)
        params = SamplingParams(
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            repetition_penalty=generation.repetition_penalty,
            suppress_tokens=generation.suppress_tokens,
            max_new_tokens=generation.max_new_tokens,
            stop=generation.stop,
        )
        return Request(
            prompt["prompt_id"], prompt["prompt"], params, cell.seed or 0, prompt["is_chat"]
        )

    def _row(
        self,
        prompt: Mapping[str, Any],
        cell: Cell,
        made: Mapping[tuple[int, str], Completion],
        around: Circumstances,
    ) -> Mapping[str, Any]:
        if prompt["error"] is not None:
            return failed_row(cell, prompt["prompt_id"], prompt["error"], around)
        return generation_row(
            cell,
            made[cell.seed or 0, prompt["prompt_id"]],
            around,
            self.base_tokenizer,
            token_times=self.plan.generation.token_times,
            completion_ids=self.plan.generation.completion_ids,
        )

    def _score(
        self, prompts: list[dict[str, Any]], cell: Cell, arm: Arm, around: Circumstances
    ) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = []
        for p in prompts:
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
