"""What another vocabulary costs in quality: bits per byte, adapted against the tuned control.

    python -m benchmarks.adaptation_quality [--new-tokens 1000] [--mib 0.5] [--seeds 3]

Every way of making new rows is tuned on the same bytes of documentation as the control (the same
model with its own vocabulary), with the same settings and, per seed, in the same order. Scored on
documentation of no model's training, in segments of equal bytes. The seed is of the order of the
text and of random rows; the demo model itself was trained once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
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
from optim.model import LanguageModel, load

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


def run(arguments: argparse.Namespace, lm: LanguageModel) -> Iterator[dict[str, Any]]:
    """One row per way and seed; the control is tuned with the first way of each seed."""
    texts = [document.text for document in training_documents() if not document.is_source]
    segments = held_out(2048)
    untouched = measure(lm, segments)
    for seed in range(arguments.seeds):
        control: float | None = None
        for way, settings in WAYS.items():
            preparation = AdaptivocabPreparation(
                expand=arguments.new_tokens,
                tune_mib=arguments.mib,
                trained_layers=arguments.layers,
                learning_rate=arguments.learning_rate,
                batch_bytes=8192,
                bfloat16=True,
                control=control is None,
                seed=seed,
                **settings,
            )
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "artifact"
                preparation.run(lm, texts, out, source="documentation")
                manifest = Artifact.open(out).manifest
                if control is None:
                    control = measure(Tuned(artifact=str(out)).apply(lm), segments)
                tuned = measure(Adaptivocab(artifact=str(out)).apply(lm), segments)
            assert manifest.tuning is not None
            yield {
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--new-tokens", type=int, default=1000)
    parser.add_argument("--mib", type=float, default=0.5, help="MiB of text to tune on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", default="all", choices=["first_and_last", "all"])
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    console = Console(width=120)
    rows = []
    for row in run(arguments, load("demo", device="cpu")):
        rows.append(row)
        console.print(
            f"{row['way']}, seed {row['seed']}: {row['before']:.4f} before, {row['tuned']:.4f} "
            f"tuned, control {row['control']:.4f}"
        )
    table = Table(
        title="bits per byte of held-out documentation, median (least-largest) over seeds"
    )
    for heading in ("new rows", "before tuning", "tuned", "over the control"):
        table.add_column(heading)
    summary = {}
    for way in WAYS:
        own = [row for row in rows if row["way"] == way]
        found = {
            key: median_and_spread([r[key] for r in own]) for key in ("before", "tuned", "ratio")
        }
        summary[way] = found
        table.add_row(
            way, *(f"{f['median']:.4f} ({f['min']:.4f}-{f['max']:.4f})" for f in found.values())
        )
    console.print(table)
    ordered = [summary[way]["tuned"]["median"] for way in ("exp", "mean", "random")]
    goals = {
        f"tuned at most {GOAL} of the control": summary["exp, calibrated"]["ratio"]["median"]
        <= GOAL,
        "exp at most mean, below random": ordered[0] <= ordered[1] < ordered[2],
    }
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
