"""Decoding with models of real shapes: dense against LaRoSA, beside what memory traffic allows.

    python -m benchmarks.engine.decode --model llama-3.2-1b [--dtype float32] [--batches 1 2 4 8]

Weights are random, since speed does not depend on their values: the sparse model is the dense one
with a product of the model's width (an identity) behind each layer, as rotations would need it, so
that its logits at sparsity 0 must be the dense model's. Steps of all configurations alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, StaticCache

from benchmarks.engine.real_shapes import MODELS, dense_model
from benchmarks.machine import describe, median_and_spread
from optim.larosa.architecture import architecture_of, layers_of
from optim.larosa.projections import projection
from optim.larosa.sparse import break_even
from optim.larosa.sparse.builder import Builder, Built, Selection, Weights
from optim.model import DTYPES

CONTEXT, WARM_UP = 64, 3
SPARSITIES = (0.25, 0.4, 0.5)


@dataclass
class Bytes:
    """What one step reads at batch 1, in bytes of weights."""

    blocks: int
    adapters: int
    head: int

    def ceiling(self, sparsity: float) -> float:
        """The most that a step gains over the dense model, if reading is all that it does."""
        return (self.blocks + self.head) / self._read(sparsity)

    def own_ceiling(self, sparsity: float) -> float:
        """The same over the sparse model that drops nothing, which reads the adapters too."""
        return self._read(0.0) / self._read(sparsity)

    def _read(self, sparsity: float) -> float:
        return self.blocks * (1 - sparsity) + self.adapters + self.head


class TransposedWeights:
    """The tensors of an artifact whose rotations are identities, made from the dense model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.architecture = architecture_of(model)
        self.tensors: dict[str, Tensor] = {}
        layers = layers_of(model, self.architecture)
        for index, layer in enumerate(layers):
            for site in self.architecture.sites():
                for path in site.consumers:
                    weight, bias = projection(layer, path)
                    self.tensors[f"layers.{index}.{path}.weight"] = weight.T.contiguous()
                    if bias is not None:
                        self.tensors[f"layers.{index}.{path}.bias"] = bias
            if index < len(layers) - 1:
                width = model.config.hidden_size
                eye = torch.eye(width, dtype=model.dtype, device=model.device)
                self.tensors[f"layers.{index}.adapter"] = eye
        self.num_layers = len(layers)
        self.model = model

    def bytes(self) -> Bytes:
        size = {n: t.numel() * t.element_size() for n, t in self.tensors.items()}
        adapters = sum(v for n, v in size.items() if n.endswith("adapter"))
        head = self.model.get_output_embeddings().weight
        return Bytes(sum(size.values()) - adapters, adapters, head.numel() * head.element_size())

    def shapes(self) -> set[tuple[int, int]]:
        found = set()
        for name, tensor in self.tensors.items():
            if name.startswith("layers.0.") and name.endswith(".weight"):
                found.add((tensor.shape[0], tensor.shape[1]))
        return found

    def width(self, site: Any) -> int:
        return self.tensors[f"layers.0.{site.consumers[0]}.weight"].shape[0]

    def build(self, sparsity: float, rule: break_even.RowRule) -> Built:
        selections = [
            {
                site.name: Selection(sparsity, k=round((1 - sparsity) * self.width(site)))
                for site in self.architecture.sites()
            }
        ] * self.num_layers
        like = self.model.get_output_embeddings().weight
        return Builder(
            self.model,
            Weights(self.tensors.__getitem__, frozenset(self.tensors), like, "benchmark"),
            folds=False,
            adapted=frozenset(range(self.num_layers - 1)),
            selections=selections,
            max_rows=rule,
            row_major=False,
            sparsify_prefill=False,
            forces_kernel=not sparsity,
        ).build()


class Stepper:
    """One configuration at one batch size, a step at a time.

    On a GPU the step is a CUDA graph over a static cache, dense or sparse alike: launches would
    hide what reading weights costs. It is captured as it is, or compiled by torch first.
    """

    def __init__(
        self, model: Any, rows: int, vocabulary: int, device: torch.device, steps: int, graph: str
    ) -> None:
        self.device = device
        generator = torch.Generator().manual_seed(rows)
        prompt = torch.randint(0, vocabulary, (rows, CONTEXT), generator=generator).to(device)
        self.call = model
        cache: Any = DynamicCache()
        if device.type == "cuda":
            cache = StaticCache(config=model.config, max_cache_len=CONTEXT + steps + 2 * WARM_UP)
        with torch.inference_mode():
            out = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.cache, self.ids = cache, out.logits[:, -1:].argmax(-1)
        self.place = torch.full((1, 1), CONTEXT, device=device)
        self.run = self._next
        if device.type == "cuda" and graph == "compiled":
            self.call = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
        elif device.type == "cuda":
            self.run = self._captured()

    def _next(self) -> None:
        with torch.inference_mode():
            out = self.call(
                input_ids=self.ids,
                past_key_values=self.cache,
                position_ids=self.place,
                use_cache=True,
            )
            self.ids.copy_(out.logits[:, -1:].argmax(-1))
            self.place += 1

    def _captured(self) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._next()
        torch.cuda.current_stream().wait_stream(side)
        made = torch.cuda.CUDAGraph()
        with torch.cuda.graph(made):
            self._next()
        return made.replay

    def step(self) -> float:
        """Seconds of one step."""
        start = perf_counter()
        self.run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter() - start


def measure(
    models: dict[str, Any],
    rows: int,
    steps: int,
    vocabulary: int,
    device: torch.device,
    graph: str = "captured",
) -> dict[str, list[float]]:
    """Seconds of each step of each configuration, in turn."""
    steppers = {
        name: Stepper(model, rows, vocabulary, device, steps, graph)
        for name, model in models.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(steps + WARM_UP):
        for name, stepper in steppers.items():
            spent = stepper.step()
            if number >= WARM_UP:
                times[name].append(spent)
    return times


def run(
    name: str, dtype: torch.dtype, device: torch.device, batches: Sequence[int], steps: int,
    graph: str, sparsities: Sequence[float], console: Console,
) -> dict[str, Any]:  # fmt: skip
    dense = dense_model(name, dtype, device)
    weights = TransposedWeights(dense)
    traffic = weights.bytes()
    console.print(
        f"{name}, {dtype}: {traffic.blocks / 1e9:.2f} GB of layers, {traffic.head / 1e9:.2f} GB of "
        f"head, {traffic.adapters / 1e6:.0f} MB of adapters"
    )
    table = break_even.measure(weights.shapes(), dtype, device, traffic.blocks)
    label = str(dtype).removeprefix("torch.")
    models: dict[str, Any] = {"dense": dense}
    models["s=0, kernel"] = weights.build(0.0, lambda inputs, outputs, share: max(batches)).model
    rule = break_even.max_rows(table, break_even.place(device, dtype))
    for sparsity in sparsities:
        models[f"larosa {sparsity:.0%}"] = weights.build(sparsity, rule).model
    found: dict[str, Any] = {}
    vocabulary = dense.config.vocab_size
    for rows in batches:
        times = measure(models, rows, steps, vocabulary, device, graph)
        found[str(rows)] = _summary(times, traffic)
        _print(found[str(rows)], rows, console)
    return {
        "model": name,
        "dtype": label,
        "graph": graph if device.type == "cuda" else None,
        "bytes": vars(traffic),
        "break_even": [entry.model_dump() for entry in table],
        "batches": found,
    }


def _summary(times: dict[str, list[float]], traffic: Bytes) -> dict[str, Any]:
    dense = statistics.median(times["dense"])
    own = statistics.median(times["s=0, kernel"])
    found: dict[str, Any] = {}
    for name, spent in times.items():
        ratios = [a / b for a, b in zip(times["dense"], spent, strict=True)]
        median = statistics.median(spent)
        entry = {
            "step_s": median_and_spread(spent),
            "over_dense": dense / median,
            "ratio": median_and_spread(ratios),
            "over_own_dense": own / median,
            "dense_gb_per_s": (traffic.blocks + traffic.head) / dense / 1e9,
        }
        if name.startswith("larosa"):
            sparsity = float(name.split()[1].rstrip("%")) / 100
            entry["ceiling"] = traffic.ceiling(sparsity)
            entry["own_ceiling"] = traffic.own_ceiling(sparsity)
        found[name] = entry
    return found


def _print(summary: dict[str, Any], rows: int, console: Console) -> None:
    """Ceilings hold at batch 1; a ratio above one means that the rival reads slower than it could,
    and only the ratio to the own kernel at sparsity 0 counts."""
    table = Table(title=f"batch {rows}, context {CONTEXT}", title_justify="left")
    for heading in ("configuration", "step", "over dense", "spread", "ceiling", "over own s=0",
                    "its ceiling"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "configuration" else "right")
    for name, entry in summary.items():
        has_ceiling = rows == 1 and "ceiling" in entry
        spread = entry["ratio"]
        table.add_row(
            name,
            f"{entry['step_s']['median'] * 1e3:.1f} ms",
            f"{entry['over_dense']:.2f}x",
            f"{spread['min']:.2f}-{spread['max']:.2f}",
            _share(entry["over_dense"], entry["ceiling"]) if has_ceiling else "",
            f"{entry['over_own_dense']:.2f}x",
            _share(entry["over_own_dense"], entry["own_ceiling"]) if has_ceiling else "",
        )
    console.print(table)


def _share(ratio: float, ceiling: float) -> str:
    rival = " rival slow" if ratio > ceiling else ""
    return f"{ceiling:.2f}x ({ratio / ceiling:.0%}{rival})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=MODELS, default="llama-3.2-1b")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument(
        "--graph", choices=("captured", "compiled"), default="captured", help="of a step on a GPU"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=100 if not sys.stdout.isatty() else None)
    before = describe()
    found = run(
        arguments.model,
        DTYPES[arguments.dtype],
        torch.device(arguments.device),
        arguments.batches,
        arguments.steps,
        arguments.graph,
        arguments.sparsities,
        console,
    )
    found = {"benchmark": "decode", "machine": before, **found}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
