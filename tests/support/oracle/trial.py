"""A trial's results folder as the result files' documentation describes it, read by pyarrow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Row = dict[str, Any]
Key = tuple[Any, ...]

GENERATED = (
    "dataset", "prompt_id", "seed", "shard", "prompt_tokens", "completion_tokens",
    "base_completion_tokens", "completion_bytes", "finish_reason", "error", "ttft_s", "tpot_s",
    "e2e_s", "completion_text", "warmup", "ends_in_loop",
)  # fmt: skip
SCORED = ("dataset", "prompt_id", "shard", "candidate", "num_bytes", "nats", "error")


@dataclass(frozen=True)
class Trial:
    """The rows of a folder that holds the cells of one plan, and no others."""

    folder: Path

    @cached_property
    def plan(self) -> Row:
        """As the manifest has it, or the last extension."""
        extensions = sorted((self.folder / "extensions").glob("*.json"))
        text = (extensions[-1] if extensions else self.folder / "manifest.json").read_text()
        loaded: Row = json.loads(text)
        plan: Row = loaded.get("plan", loaded)
        return plan

    @cached_property
    def generations(self) -> dict[str, dict[Key, Row]]:
        """Configuration -> (dataset, prompt, seed) -> row."""
        found: dict[str, dict[Key, Row]] = {}
        for name, _, rows in self._generated:
            for row in rows:
                key = row["dataset"], row["prompt_id"], row["seed"]
                assert key not in found.setdefault(name, {}), key
                row["total_tokens"] = _sum(row["prompt_tokens"], row["completion_tokens"])
                found[name][key] = row
        return found

    @cached_property
    def cells(self) -> dict[str, dict[Key, Row]]:
        """Configuration -> (dataset, shard, seed) -> facts of the cell that generated."""
        found: dict[str, dict[Key, Row]] = {}
        for name, facts, _ in self._generated:
            assert not facts.get("round"), "leases are another design"
            found.setdefault(name, {})[facts["dataset"], facts["shard"], facts["seed"]] = facts
        return found

    @cached_property
    def targets(self) -> dict[str, dict[Key, Row]]:
        """Configuration -> (dataset, prompt) -> the likelihood of its target."""
        found: dict[str, dict[Key, Row]] = {}
        for name, _, rows in self._parts("likelihoods", SCORED):
            for row in rows:
                if row["candidate"] == -1:
                    found.setdefault(name, {})[row["dataset"], row["prompt_id"]] = row
        return found

    @cached_property
    def groups(self) -> dict[Key, Key]:
        """(dataset, prompt) -> its group of dependent prompts; itself where there is none."""
        found: dict[Key, Key] = {}
        for path in sorted((self.folder / "inputs").glob("prompts*.parquet")):
            table = pq.read_table(path, columns=["dataset", "prompt_id", "cluster"])
            for dataset, prompt, cluster in zip(*table.to_pydict().values(), strict=True):
                own = ("prompt", prompt) if cluster is None else ("cluster", cluster)
                found[dataset, prompt] = (dataset, *own)
        return found

    def num_missing(self, configuration: str) -> int:
        """Cells that the plan has and the folder has not."""
        planned = 0
        plan = self.plan
        for dataset in plan["datasets"]:
            if configuration not in (dataset.get("arms") or [configuration]):
                continue
            for seed in plan["seeds"] if dataset.get("generates", True) else ():
                arms = (plan.get("seed_arms") or {}).get(str(seed))
                planned += dataset["num_shards"] if arms is None or configuration in arms else 0
            if dataset["has_targets"] and plan["likelihoods"]:
                planned += dataset["num_shards"]
        names = (
            f"{kind}/configuration=c-{configuration}" for kind in ("generations", "likelihoods")
        )
        return planned - sum(len(list((self.folder / n).glob("part-*.parquet"))) for n in names)

    @cached_property
    def _generated(self) -> list[tuple[str, Row, list[Row]]]:
        return self._parts("generations", GENERATED)

    def _parts(self, kind: str, columns: tuple[str, ...]) -> list[tuple[str, Row, list[Row]]]:
        """Of each part its configuration, the facts in its footer, and its rows."""
        found = []
        for path in sorted((self.folder / kind).glob("configuration=c-*/part-*.parquet")):
            file = pq.ParquetFile(path)
            facts = json.loads(file.metadata.metadata[b"optrial.cell"])
            name = path.parent.name.removeprefix("configuration=c-")
            there = [name for name in columns if name in file.schema_arrow.names]
            found.append((name, facts, file.read(columns=there).to_pylist()))
        return found


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
