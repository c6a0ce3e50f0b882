"""`Arm`: one configuration of a trial, loaded and ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from cluster.plan import Configuration, ModelSource, WeightOrder
from optim.cache.slot_cache import cache_factory
from optim.model import LanguageModel, load, weight_bytes
from optim.registry import optimization


def order_weights(model: nn.Module, order: WeightOrder) -> None:
    """Let linear layers' weights lie by columns where that is read faster; values stay.

    In place, so that models which share a parameter go on sharing it; what was mapped from a file
    takes memory of its own. `rows` leaves all as it was loaded, and so are weights on a GPU, in
    half precision, and those with fewer outputs than inputs.
    """
    if order == "rows":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear) and _gains(module.weight):
            weight = module.weight
            weight.data = weight.data.t().contiguous().t()


def _gains(weight_ND: Tensor) -> bool:
    num_outputs, num_inputs = weight_ND.shape
    return (
        weight_ND.device.type == "cpu"
        and weight_ND.dtype == torch.float32
        and num_outputs >= num_inputs
        and weight_ND.is_contiguous()
    )


WARMUP_PROMPT, WARMUP_TOKENS = "The quick brown fox jumps over the lazy dog. " * 4, 8

_AMOUNTS = {"layer_bytes", "skipped_bytes", "select_s"}
"""Of what is metered: what adds up over the cells of a call."""


@dataclass
class Arm:
    """One configuration, ready to run."""

    configuration: Configuration
    engine: Engine
    weight_bytes_shared: int
    weight_bytes_private: int
    prefill: str
    """What decides the keys and values of a prompt: arms that agree in it can share prompts."""
    is_warm: bool = False

    def warm_up(self) -> None:
        """Fill the batch twice; `is_warm` says whether that worked."""
        params = SamplingParams(max_new_tokens=WARMUP_TOKENS)
        count = 2 * self.configuration.batch_size
        requests = [Request(str(i), WARMUP_PROMPT, params) for i in range(count)]
        self.is_warm = all(c.error is None for c in self.engine.generate(requests))

    def facts(self, num_cells: int) -> dict[str, Any]:
        """Of the engine's last call; what adds up over time is shared out to its cells."""
        stats, store = self.engine.stats, self.engine.prefixes
        books, system = stats.kv_audit or (None, None)
        return {
            "num_steps": stats.num_steps,
            "mean_occupied_share": self._occupied_share(),
            "prefill_s": stats.prefill_s / num_cells,
            "decode_s": stats.decode_s / num_cells,
            "weight_bytes_shared": self.weight_bytes_shared,
            "weight_bytes_private": self.weight_bytes_private,
            "kv_used_peak_bytes": stats.kv_peak.used_bytes,
            "kv_committed_peak_bytes": stats.kv_peak.committed_bytes,
            "kv_reserved_peak_bytes": stats.kv_peak.reserved_bytes,
            "kv_used_byte_s": stats.kv_byte_s.used / num_cells,
            "kv_committed_byte_s": stats.kv_byte_s.committed / num_cells,
            "kv_reserved_byte_s": stats.kv_byte_s.reserved / num_cells,
            "kv_books_bytes": books,
            "kv_system_bytes": system,
            "num_shared_prefills": None if store is None else store.num_prefills,
            **self._metered(num_cells),
            **self.engine.lm.facts,
            "process_rss_bytes": psutil.Process().memory_info().rss,
            **self._device_memory(),
        }

    def _occupied_share(self) -> float | None:
        stats = self.engine.stats
        if not stats.num_steps:
            return None
        return stats.num_slot_steps / (stats.num_steps * self.configuration.batch_size)

    def _metered(self, num_cells: int) -> dict[str, Any]:
        """What an optimisation counted; amounts are shared out, shares are not."""
        facts = {} if self.engine.lm.meter is None else self.engine.lm.meter.facts()
        return {
            name: value / num_cells if value is not None and name in _AMOUNTS else value
            for name, value in facts.items()
        }

    def _device_memory(self) -> dict[str, Any]:
        if self.engine.lm.device.type != "cuda":
            return {"device_used_bytes": None, "device_peak_bytes": None}
        peak = torch.cuda.max_memory_allocated()
        free, total = torch.cuda.mem_get_info()
        torch.cuda.reset_peak_memory_stats()
        return {"device_used_bytes": total - free, "device_peak_bytes": peak}


def load_source(source: ModelSource) -> LanguageModel:
    """The model of a plan, on this process's device; InputError where it cannot be used."""
    return load(
        source.path,
        revision=source.revision,
        dtype=source.dtype,
        device=source.device,
        trust_remote_code=source.trust_remote_code,
        fingerprint=source.fingerprint,
    )


def make_arm(configuration: Configuration, lm: LanguageModel, base: LanguageModel) -> Arm:
    """An arm over a model that its optimisations were applied to."""
    engine = Engine(
        lm,
        batch_size=configuration.batch_size,
        cache=cache_factory(configuration.cache),
        prefill_chunk=configuration.prefill_chunk,
    )
    shared, private = weight_bytes(lm.model, base.model)
    chosen = [(o.name, o.settings) for o in configuration.optimizations]
    weights = [(n, s) for n, s in chosen if optimization(n, s).stage != "cache"]
    prefill = repr((weights, configuration.prefill_chunk))
    return Arm(configuration, engine, shared, private, prefill)
