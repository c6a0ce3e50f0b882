"""What dropping activations costs: bits per byte of every variant at every sparsity.

    python -m benchmarks.sparsity.sparsity_quality --model demo [--model DIR …]

Each variant is prepared on the documentation that the demo model was trained on and scored on held
out documentation, every token masked (prompts too), so that nothing hides behind dense tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import describe
from jobs.data.demo_corpus import held_out_documents, training_documents
from optim.larosa.artifact import Artifact
from optim.larosa.optimization import Larosa
from optim.larosa.preparation import LarosaPreparation
from optim.model import LanguageModel, load

LEVELS = (0.25, 0.4, 0.5, 0.65)
VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {"variant": "topk"},
    "threshold": {"variant": "threshold"},
    "larosa": {"variant": "larosa"},
    "larosa+": {"variant": "larosa+"},
    "larosa+, same share everywhere": {"variant": "larosa+", "held_out": 0},
    "larosa+, one rotation": {"variant": "larosa+", "span": 0},
    "larosa+, for a first look": {"variant": "larosa+", **LarosaPreparation.quick},
}
WINDOW = 512
"""Tokens that are scored in one pass."""


class Text:
    """Held-out text in windows of tokens, and how many bytes it has."""

    def __init__(self, lm: LanguageModel, num_windows: int) -> None:
        documents = [document.text for document in held_out_documents()]
        random.Random(1).shuffle(documents)
        ids: list[int] = []
        for text in documents:
            ids += [*lm.tokenizer(text, verbose=False)["input_ids"], min(lm.end_ids)]
        num_windows = min(num_windows, len(ids) // WINDOW)
        self.windows_NT = torch.tensor(ids[: num_windows * WINDOW]).view(-1, WINDOW)
        self.num_bytes = sum(
            len(lm.tokenizer.decode(row[1:]).encode()) for row in self.windows_NT.tolist()
        )

    def bits_per_byte(self, lm: LanguageModel) -> float:
        nats = 0.0
        with torch.inference_mode():
            for row_T in self.windows_NT:
                logits_TV: Tensor = lm.model(input_ids=row_T[None], use_cache=False).logits[0, :-1]
                nats += float(
                    torch.nn.functional.cross_entropy(logits_TV.float(), row_T[1:], reduction="sum")
                )
        return nats / self.num_bytes / 0.6931471805599453


def run(path: str, num_windows: int, say: Callable[[str], None]) -> dict[str, Any]:
    lm = load(path, dtype="float32", device="cpu")
    text = Text(lm, num_windows)
    dense = text.bits_per_byte(lm)
    rows: dict[str, Any] = {}
    for name, settings in VARIANTS.items():
        say(f"{path}: {name}")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "artifact"
            preparation = LarosaPreparation.model_validate(
                {"levels": LEVELS, "break_even": False} | settings
            )
            corpus = (d.text for d in training_documents() if not d.is_source)
            preparation.run(lm, corpus, out, source="demo/training")
            rows[name] = _row(lm, out, text, dense)
    return {"model": path, "layers": lm.model.config.num_hidden_layers,
            "parameters": sum(p.numel() for p in lm.model.parameters()),
            "bytes_scored": text.num_bytes, "dense": dense, "variants": rows}  # fmt: skip


def _row(lm: LanguageModel, out: Path, text: Text, dense: float) -> dict[str, Any]:
    manifest = Artifact.open(out).manifest
    found = []
    for level, prepared in zip(LEVELS, manifest.levels, strict=True):
        sparse = Larosa(artifact=str(out), sparsity=level, sparsify_prefill=True).apply(lm)
        assert sparse.meter is not None
        sparse.meter.reset()
        bits = text.bits_per_byte(sparse)
        achieved = sparse.meter.facts()["sparsity"]
        found.append(
            {"sparsity": level, "achieved": achieved, "bits_per_byte": bits,
             "excess": bits - dense, "shares": prepared.shape}
        )  # fmt: skip
    return {"levels": found, "adapters": len(manifest.adapted)}


def show(found: dict[str, Any], console: Console) -> None:
    table = Table(
        title=f"{found['model']} ({found['layers']} layers, {found['parameters']:,} parameters): "
        f"bits per byte, dense {found['dense']:.4f}",
        title_justify="left",
    )
    table.add_column("variant")
    table.add_column("adapters", justify="right")
    for level in LEVELS:
        table.add_column(f"{level:.0%}", justify="right")
    for name, row in found["variants"].items():
        cells = [
            f"{e['bits_per_byte']:.4f} (+{e['excess']:.4f}) at {e['achieved']:.1%}"
            for e in row["levels"]
        ]
        table.add_row(name, str(row["adapters"]), *cells)
    console.print(table)
    own, published = (found["variants"][n]["levels"][2]["excess"] for n in ("larosa+", "larosa"))
    console.print(f"larosa+ loses {own / published:.2f} of what larosa loses at 50 % (goal 0.50)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", action="append", help="demo, or a folder; may be repeated")
    parser.add_argument("--windows", type=int, default=64, help=f"of {WINDOW} tokens each")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = describe()
    console = Console(width=150 if not sys.stdout.isatty() else None)
    models = []
    for path in arguments.model or ["demo"]:
        found = run(path, arguments.windows, lambda text: print(text, file=sys.stderr, flush=True))
        show(found, console)
        models.append(found | {"model": Path(path).name})
    print(json.dumps({"benchmark": "sparsity_quality", "machine": machine, "models": models}))


if __name__ == "__main__":
    main()
