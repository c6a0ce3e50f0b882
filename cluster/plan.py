"""What a trial runs, as plain frozen data: configurations, datasets, cells and blocks.

A `Plan` is made by the jobs from a trial's spec, is written to the manifest, and is all that a
worker needs. It is JSON both ways, so nothing is pickled but plain values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
"""Version of the result files; part of every cell key, so files of two versions never mix."""

SharePrompts = Literal["none", "seeds", "configurations"]

Kind = Literal["generations", "likelihoods"]
"""What a cell produces; also the name of the folder that its part lies in."""


def digest(value: object) -> str:
    """sha256 (hex) of the canonical JSON of `value`: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSource(Frozen):
    """Where a model comes from and how it is loaded."""

    path: str
    """A local folder, a hub id, or `demo` (the model that ships with Optrial)."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is float32 on CPU and the checkpoint's own dtype on GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is cuda where the worker was given a GPU, else cpu."""
    trust_remote_code: bool = False
    fingerprint: str = ""
    """sha256 of the weights' and tokenizer's files, or the hub revision."""


class Generation(Frozen):
    """How completions are sampled; the same for every configuration of a trial."""

    max_new_tokens: int = 64
    """Budget in base tokens: a token that stands for n base tokens spends n."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    repetition_penalty: float = 1.0
    """1 is off."""
    suppress_tokens: tuple[int, ...] = ()
    """Ids that are never chosen, in order."""
    stop: tuple[str, ...] = ()
    token_times: bool = False
    """Record every token's time (`token_times_s`)."""
    completion_ids: bool = False
    """Record the ids (`completion_ids`) beside the text."""

    def identity(self) -> dict[str, Any]:
        """What identifies it. What newer versions added counts only where it is set."""
        return decisive_generation(self.model_dump(mode="json"))


def decisive_generation(generation: Mapping[str, Any]) -> dict[str, Any]:
    """`Generation.identity` of one in a manifest, whatever version wrote it."""
    return {k: v for k, v in generation.items() if k not in _ADDED or v != _ADDED[k]}


_ADDED: dict[str, Any] = {"repetition_penalty": 1.0, "suppress_tokens": []}
"""Fields that a version added, with the values at which they decide nothing."""


class OptimizationSettings(Frozen):
    """One optimisation by its registered name, and its settings."""

    name: str
    settings: dict[str, Any] = {}
    fingerprint: str = ""
    """Of the artifact that it uses; empty where it uses none."""


class Configuration(Frozen):
    """One arm of the trial: optimisations plus engine settings."""

    name: str
    optimizations: tuple[OptimizationSettings, ...] = ()
    batch_size: int = 8
    cache: str = "dynamic"
    prefill_chunk: int | None = None
    """Tokens per prefill step; None prefills a prompt whole."""
    vs: str | None = None
    """The configuration that this one is compared with; None for a reference."""
    duplicate_of: str | None = None
    """Set on the second half of an A/A pair."""
    levels: dict[str, str] = {}
    """Factor name -> level name, where the configuration comes from `factors`."""
    fingerprint: str = ""
    """Digest of all that decides this configuration's outputs, and of its name."""


class TaskSource(Frozen):
    """The lm-eval task that a dataset's rows were built from: what scoring them needs to know."""

    name: str
    include_path: str | None = None
    """Folder of task files beside lm-eval's own."""
    num_fewshot: int = 0
    is_chat: bool = False
    """Whether its prompts are rendered by the model's chat template."""
    trust_remote_code: bool = False
    """Whether it may fetch metrics from the hub, which are code."""
    version: str = ""
    """As the task's author counts it."""
    lm_eval_version: str = ""
    config_sha256: str = ""
    """Of the task's configuration as lm-eval resolved it."""
    documents_sha256: str = ""
    """Of the documents that are run: scoring checks that it reads the same ones."""


class Dataset(Frozen):
    """The rows of one dataset in `inputs/prompts.parquet`, cut into shards."""

    name: str
    num_prompts: int
    first_row: int
    """Where its rows start in the file; they are contiguous."""
    num_shards: int
    fingerprint: str
    """sha256 over its rows as run."""
    scorers: tuple[str, ...] = ()
    has_targets: bool = False
    arms: tuple[str, ...] | None = None
    """The configurations that run it; None for all. Set on prompts that were added later."""
    generates: bool = True
    """Whether completions are wanted; a task that only compares likelihoods has none."""
    generation: Generation | None = None
    """How its completions are sampled, where that is not the trial's."""
    task: TaskSource | None = None
    """The task that its rows were built from, where they were."""

    def identity(self) -> dict[str, Any]:
        """What of it decides outputs. What newer versions added counts only where it is set.

        Scorers and tasks read what was written, so they decide none of it.
        """
        return decisive_dataset(self.model_dump(mode="json"))

    def rows(self, shard: int) -> tuple[int, int]:
        """`[start, stop)` of a shard within the dataset; sizes differ by at most one."""
        return (
            shard * self.num_prompts // self.num_shards,
            (shard + 1) * self.num_prompts // self.num_shards,
        )


def origin(dataset: str) -> str:
    """The dataset of the spec that prompts are of: what is added later is named `<name>+<look>`."""
    return dataset.split("+")[0]


def decisive_dataset(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """`Dataset.identity` of a dataset in a manifest, whatever version wrote it."""
    kept = {key: value for key, value in dataset.items() if key not in {"scorers", "task"}}
    if kept.get("generates", True):
        kept.pop("generates", None)
    for key in ("arms", "generation"):
        if kept.get(key) is None:
            kept.pop(key, None)
    if "generation" in kept:
        kept["generation"] = decisive_generation(kept["generation"])
    return kept


class Cell(Frozen):
    """The unit of commit and resume: one shard, one seed, one configuration."""

    key: str
    kind: Kind
    configuration: str
    dataset: str
    shard: int
    seed: int | None
    """None for likelihoods, which draw nothing."""
    start: int
    stop: int


class Block(Frozen):
    """The cells of one (dataset, shard, seed) under all configurations; of all seeds where those
    share prompts.

    One worker runs them back to back, in an order drawn at random, so that drift of the machine
    meets every configuration alike.
    """

    index: int
    kind: Kind
    dataset: str
    shard: int
    seed: int | None
    """None for all seeds, and for likelihoods."""
    cells: tuple[Cell, ...]
    round: int = 0
    """In which round of leases it is run; 0 where a worker holds all configurations."""


Schedule = Literal["auto", "blocks", "leases"]
WeightOrder = Literal["rows", "columns"]
"""How weights [outputs, inputs] lie in memory: see `cluster.worker.loaded_configuration`."""


class WorkerResources(Frozen):
    """How many workers, what each one is given, and how they share the work."""

    count: int = 1
    """Wanted; a trial starts with those that there is room for, and takes more as they come."""
    cpus: float = 1
    gpus: float = 0
    accelerator_type: str | None = None
    """The only kind of accelerator to run on, as Ray names it (`H100`)."""
    start_timeout_s: float = 0.0
    """How long to wait for a node that a worker fits on, where there is none yet."""
    schedule: Schedule = "auto"
    """`blocks`: a worker holds all configurations; `leases`: one at a time, in rounds; `auto`:
    leases where the configurations do not fit into memory beside each other."""
    rounds: int = 3
    """Of leases: how often each configuration has its turn."""
    deadline_s: float | None = None
    """Most seconds that a block may take; None for five times what is usual, at least 60."""
    node_cache: str | None = None
    """A folder on each node's own disk: model and artifacts are copied there once per node."""


class Plan(Frozen):
    """The whole trial, resolved."""

    run_id: str
    """Digest of all that decides the deterministic columns: the same trial has the same id."""
    output: str
    model: ModelSource
    configurations: tuple[Configuration, ...]
    datasets: tuple[Dataset, ...]
    seeds: tuple[int, ...]
    generation: Generation
    likelihoods: bool = True
    """Whether targets are scored by the model (bits per byte, multiple choice, tasks)."""
    share_prompts: SharePrompts = "none"
    """Who shares a prompt that was prefilled once: nobody, the seeds of a configuration, or all
    configurations of equal weights as well."""
    weight_order: WeightOrder = "rows"
    """How weights lie in memory, where that matters."""
    workers: WorkerResources = WorkerResources()
    shuffle_seed: int = 0
    seed_arms: dict[int, tuple[str, ...]] = {}
    """The configurations that run a seed; all of them run one that is not named. Set on seeds that
    were added later."""
    analysis: dict[str, Any] = {}
    """How the jobs judge it (`jobs.spec.analysis_plan.Judgement`), as stated when it first ran."""
    looks: tuple[dict[str, Any], ...] = ()
    """What the jobs decided before it was extended (`jobs.analysis.looks.Look`), in order."""

    def configuration(self, name: str) -> Configuration:
        return next(c for c in self.configurations if c.name == name)

    def dataset(self, name: str) -> Dataset:
        return next(d for d in self.datasets if d.name == name)

    def spans(self) -> Iterator[tuple[Kind, tuple[int | None, ...], Dataset]]:
        """Kind, seeds and dataset of all blocks in canonical order: one block for each shard."""
        groups = [self.seeds] if self.share_prompts != "none" else [(s,) for s in self.seeds]
        for seeds in groups:
            for dataset in self.datasets:
                if dataset.generates:
                    yield "generations", seeds, dataset
        if not self.likelihoods:
            return
        for dataset in self.datasets:
            if dataset.has_targets:
                yield "likelihoods", (None,), dataset

    def blocks(self) -> Iterator[Block]:
        """Every block of the trial in canonical order (the scheduler shuffles)."""
        index = 0
        for kind, seeds, dataset in self.spans():
            for shard in range(dataset.num_shards):
                yield self.block(index, kind, dataset, shard, seeds)
                index += 1

    def runs(
        self, dataset: Dataset, seeds: Sequence[int | None]
    ) -> Iterator[tuple[Configuration, int | None]]:
        """Which configurations run which of the seeds on a dataset, in the order of cells."""
        for configuration in self.configurations:
            if dataset.arms is None or configuration.name in dataset.arms:
                for seed in seeds:
                    arms = None if seed is None else self.seed_arms.get(seed)
                    if arms is None or configuration.name in arms:
                        yield configuration, seed

    def generation_of(self, dataset: str) -> Generation:
        """How completions of a dataset are sampled."""
        return self.dataset(dataset).generation or self.generation

    def block(
        self, index: int, kind: Kind, dataset: Dataset, shard: int, seeds: Sequence[int | None]
    ) -> Block:
        """The block of a shard, with those cells that the plan wants of it."""
        start, stop = dataset.rows(shard)
        cells = tuple(
            Cell(
                key=cell_key(c.fingerprint, dataset.fingerprint, kind, seed, start, stop),
                kind=kind,
                configuration=c.name,
                dataset=dataset.name,
                shard=shard,
                seed=seed,
                start=start,
                stop=stop,
            )
            for c, seed in self.runs(dataset, seeds)
        )
        only = seeds[0] if len(seeds) == 1 else None
        return Block(
            index=index, kind=kind, dataset=dataset.name, shard=shard, seed=only, cells=cells
        )


def best_order(batch_sizes: Iterable[int]) -> WeightOrder:
    """The order of weights for a trial with these numbers of rows to a step."""
    return "columns" if max(batch_sizes) <= 2 else "rows"


def cell_key(
    configuration_fingerprint: str,
    dataset_fingerprint: str,
    kind: Kind,
    seed: int | None,
    start: int,
    stop: int,
) -> str:
    """The name that a cell's part is committed under: equal work has an equal key."""
    # The canonical JSON that `digest` takes, written out: a trial may have a million cells.
    names = ",".join(map(_quoted, (configuration_fingerprint, dataset_fingerprint, kind)))
    numbers = f"{'null' if seed is None else seed},{start},{stop}"
    return hashlib.sha256(f"[{SCHEMA_VERSION},{names},{numbers}]".encode()).hexdigest()[:16]


@lru_cache(4096)
def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
