"""What another vocabulary costs in quality: bits per byte, adapted against the tuned control.

    python -m benchmarks.adaptation_quality [--new-tokens 1000 ...] [--mib 0.5] [--seeds 3]
        [--ways exp half ...] [--processes 2]

Every way of making new rows is tuned on the same bytes of documentation as the control (the same
model with its own vocabulary), with the same settings and, per seed, in the same order. Scored on
documentation of no model's training, in segments of equal bytes. The seed is of the order of the
text and of random rows; the demo model itself was trained once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from benchmarks.machine import describe, median_and_spread
from jobs.demo_corpus import held_out_documents, training_documents
from optim.adaptivocab.artifact import Artifact
from optim.adaptivocab.folders import measure
from optim.adaptivocab.optimization import Adaptivocab, Tuned
from optim.adaptivocab.preparation import AdaptivocabPreparation
from optim.adaptivocab.segments import cut
from optim.model import load

WAYS: dict[str, dict[str, Any]] = {
    "exp, calibrated": {"init": "exp", "calibrate": True},
    "exp": {"init": "exp", "calibrate": False},
    "half": {"init": "half", "calibrate": False},
    "mean": {"init": "mean", "calibrate": False},
    "random": {"init": "random", "calibrate": False},
}
GOAL = 1.01
"""Times the control's bits per byte, at most."""


def held_out(segment_bytes: int) -> list[str]:
    """Segments of documentation that neither the model nor a preparation was shown."""
    return list(cut((document.text for document in held_out_documents()), segment_bytes))


def run(arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A row for each number of new tokens and way; the control is tuned with the first."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    lm = load("demo", device="cpu")
    texts = [document.text for document in training_documents() if not document.is_source]
    segments = held_out(2048)
    untouched = measure(lm, segments)
    control: float | None = None
    rows = []
    for new_tokens, way in product(arguments.new_tokens, arguments.ways):
        preparation = AdaptivocabPreparation(
            expand=new_tokens,
            tune_mib=arguments.mib,
            trained_layers=arguments.layers,
            learning_rate=arguments.learning_rate,
            epochs=arguments.epochs,
            batch_bytes=8192,
            bfloat16=True,
            control=control is None,
            seed=seed,
            **WAYS[way],
        )
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "artifact"
            preparation.run(lm, texts, out, source="documentation")
            manifest = Artifact.open(out).manifest
            if control is None:
                control = measure(Tuned(artifact=str(out)).apply(lm), segments)
            tuned = measure(Adaptivocab(artifact=str(out)).apply(lm), segments)
        assert manifest.tuning is not None
        row = {
            "new_tokens": new_tokens,
            "way": way,
            "seed": seed,
            "untouched": untouched,
            "control": control,
            "before": manifest.quality.adapted,
            "tuned": tuned,
            "ratio": tuned / control,
            "saving": manifest.held_out.saving,
            "text_bytes": manifest.tuning["text_bytes"],
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def summarised(
    rows: list[dict[str, Any]], arguments: argparse.Namespace, table: Table
) -> tuple[dict[str, Any], dict[str, bool]]:
    """Medians and spreads over seeds, and which goals are met; each fills a row of the table."""
    summary: dict[str, Any] = {}
    goals: dict[str, bool] = {}
    for new_tokens in arguments.new_tokens:
        medians = {}
        for way in arguments.ways:
            own = [r for r in rows if (r["new_tokens"], r["way"]) == (new_tokens, way)]
            found = {
                key: median_and_spread([r[key] for r in own])
                for key in ("before", "tuned", "ratio")
            }
            spreads = [f"{f['median']:.4f} ({f['min']:.4f}-{f['max']:.4f})" for f in found.values()]
            table.add_row(str(new_tokens), way, f"{own[0]['saving']:.1%}", *spreads)
            medians[way] = found["tuned"]["median"]
            goals[f"{new_tokens} new, {way}: tuned at most {GOAL} of the control"] = (
                found["ratio"]["median"] <= GOAL
            )
            summary[f"{new_tokens} new, {way}"] = found
        if {"exp", "mean", "random"} <= medians.keys():
            goals[f"{new_tokens} new: exp at most mean, below random"] = (
                medians["exp"] <= medians["mean"] < medians["random"]
            )
    return summary, goals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[1000])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--mib", type=float, default=0.5, help="MiB of text to tune on")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", default="all", choices=["first_and_last", "all"])
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--processes", type=int, default=1, help="seeds at a time")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        by_seed = pool.map(partial(run, arguments), range(arguments.seeds))
        rows = [row for found in by_seed for row in found]
    table = Table(
        title="bits per byte of held-out documentation, median (least-largest) over seeds"
    )
    for heading in ("new", "rows", "saving", "before tuning", "tuned", "over the control"):
        table.add_column(heading)
    summary, goals = summarised(rows, arguments, table)
    console = Console(width=120)
    console.print(table)
    for goal, is_met in goals.items():
        console.print(f"{'met' if is_met else 'NOT MET'}: {goal}")
    print(
        json.dumps(
            {
                "benchmark": "adaptation_quality",
                "machine": describe(),
                "settings": vars(arguments),
                "rows": rows,
                "summary": summary,
                "goals": goals,
            }
        )
    )


if __name__ == "__main__":
    main()
