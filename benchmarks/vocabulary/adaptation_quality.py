"""What another vocabulary costs in quality: bits per byte, adapted against the tuned control.

    python -m benchmarks.vocabulary.adaptation_quality [--new-tokens 1000 ...] [--mib 0.5] [--seeds
    3] [--ways exp half ...] [--processes 2]

Every way of making new rows is tuned on the same documentation as the control (the same model with
its own vocabulary), with the same settings and, per seed, in the same order. The control can be
tuned for several numbers of epochs, of which the best is compared with: more of the text that it
knows spoils it, while new rows have seen none. Scored on documentation of no model's training, in
segments of equal bytes. The seed is of the order of the text and of random rows; what is tuned is
made once, as a preparation makes it, and the demo model was trained once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from benchmarks.machine import describe, median_and_spread
from jobs.data.demo_corpus import held_out_documents, training_documents
from optim.adaptivocab.adapted_models import MIB, Adapting
from optim.adaptivocab.artifact import Artifact
from optim.adaptivocab.corpus import gather
from optim.adaptivocab.preparation import AdaptivocabPreparation
from optim.adaptivocab.training.embeddings import extend
from optim.adaptivocab.training.model_folders import (
    measure,
    measure_folder,
    read_facts,
    stored_dtype,
    tune_folder,
    write_model,
)
from optim.adaptivocab.training.segments import cut
from optim.model import load
from optim.resources import InProcess

WAYS: dict[str, dict[str, Any]] = {
    "exp, calibrated": {"init": "exp", "calibrate": True},
    "exp": {"init": "exp", "calibrate": False},
    "half": {"init": "half", "calibrate": False},
    "mean": {"init": "mean", "calibrate": False},
    "random": {"init": "random", "calibrate": False},
}
TEXT = "text.json"
GOAL = 1.01
"""Times the control's bits per byte, at most."""


class Job(NamedTuple):
    """A model to be tuned: one with new tokens, or the control, which has none."""

    new_tokens: int
    way: str
    seed: int
    epochs: float
    folder: Path
    """Of the untuned model."""


class Tuned(NamedTuple):
    """What came of a job: bits per byte of held-out text, and what it was tuned with."""

    job: Job
    bits_per_byte: float
    text_bytes: int
    """Repetitions included."""
    num_steps: int
    spent_s: float


def held_out(segment_bytes: int) -> list[str]:
    """Segments of documentation that neither the model nor a preparation was shown."""
    return list(cut((document.text for document in held_out_documents()), segment_bytes))


def settings(arguments: argparse.Namespace, **chosen: Any) -> AdaptivocabPreparation:
    """The same for every model, apart from what is chosen."""
    return AdaptivocabPreparation(
        encoding=arguments.encoding,
        tune_mib=arguments.mib,
        trained_layers=arguments.layers,
        learning_rate=arguments.learning_rate,
        new_rows_first=arguments.new_rows_first,
        batch_bytes=arguments.batch_bytes,
        pass_bytes=arguments.batch_bytes,
        checkpoint_steps=1000,
        bfloat16=True,
        **chosen,
    )


def prepared(
    arguments: argparse.Namespace, folder: Path, new_tokens: int, way: str, seed: int
) -> Path:
    """A model with rows for new tokens that is not tuned yet; only random ones have a seed."""
    seed = seed if way == "random" else 0
    out = folder / f"{new_tokens}-{way.replace(', ', '-')}-{seed}"
    if not out.exists():
        chosen = settings(arguments, expand=new_tokens, tune=False, seed=seed, **WAYS[way])
        chosen.run(load("demo", device="cpu"), documentation(), out, source="documentation")
    return out


def prepared_control(folder: Path) -> Path:
    """The demo model as a preparation's control is before it is tuned."""
    lm, out = load("demo", device="cpu"), folder / "control"
    if not out.exists():
        write_model(extend(lm.model, {}, tied="untie"), out, stored_dtype(lm))
        lm.tokenizer.save_pretrained(out)
    return out


def documentation() -> list[str]:
    """The texts that the demo model was trained on, without source files."""
    return [document.text for document in training_documents() if not document.is_source]


def tuned(arguments: argparse.Namespace, job: Job) -> Tuned:
    """Tune a copy of the job's model on the text that every job gets, and measure it."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    start = perf_counter()
    tuning = settings(arguments, seed=job.seed, epochs=job.epochs).tuning
    text = json.loads((job.folder.parent / TEXT).read_text())
    segments, ends = text["tuning"]
    new_ids = []
    if job.new_tokens:
        new_ids = [token.id for token in Artifact.open(job.folder).tokens.new]
    with tempfile.TemporaryDirectory() as name:
        folder, work = Path(name) / "model", Path(name) / "work"
        shutil.copytree(job.folder, folder)
        tune_folder(
            folder, segments, ends, tuning, new_ids, work, arguments.device, "", lambda stage: None
        )
        facts = read_facts(work)
        found = measure_folder(folder, text["held_out"], arguments.device)
    spent = perf_counter() - start
    made = Tuned(job, found, facts["text_bytes"], facts["num_steps"], spent)
    print(json.dumps({**made._asdict(), "job": [*job[:4]]}), flush=True)
    return made


def tuning_text(arguments: argparse.Namespace, folder: Path) -> tuple[list[str], list[bool]]:
    """The segments that a preparation tunes on, and which of them end a text."""
    chosen = settings(arguments)
    texts = gather(documentation(), int(chosen.corpus_mib * MIB), chosen.held_out)
    tokens = Artifact.open(folder).tokens
    lm = load("demo", device="cpu")
    return Adapting(chosen, lm, texts, tokens, InProcess(), lambda stage: None).tuning_segments(
        folder
    )


def rows_of(made: list[Tuned], folder: Path) -> list[dict[str, Any]]:
    """One of each adapted model, beside the best of the controls that had its seed."""
    text = json.loads((folder / TEXT).read_text())
    untouched = measure(load("demo", device="cpu"), text["held_out"])
    rows = []
    for each in made:
        if not each.job.new_tokens:
            continue
        seed = each.job.seed
        controls = [c for c in made if not c.job.new_tokens and c.job.seed == seed]
        control = min(controls, key=lambda c: c.bits_per_byte)
        manifest = Artifact.open(each.job.folder).manifest
        rows.append(
            {
                "new_tokens": each.job.new_tokens,
                "way": each.job.way,
                "seed": seed,
                "untouched": untouched,
                "controls": {c.job.epochs: c.bits_per_byte for c in controls},
                "control": control.bits_per_byte,
                "control_text_bytes": control.text_bytes,
                "before": manifest.quality.adapted,
                "tuned": each.bits_per_byte,
                "ratio": each.bits_per_byte / control.bits_per_byte,
                "saving": manifest.held_out.saving,
                "text_bytes": each.text_bytes,
            }
        )
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
    parser.add_argument(
        "--control-epochs", type=float, nargs="+", help="the best is the rival; default: --epochs"
    )
    parser.add_argument("--new-rows-first", type=float, default=0.0, help="share of the steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", default="all", choices=["first_and_last", "all"])
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch-bytes", type=int, default=8192, help="of text to a step")
    parser.add_argument("--processes", type=int, default=1, help="models tuned at a time")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--encoding", default="auto", choices=["auto", "native", "patch"])
    parser.add_argument("--folder", type=Path, help="where untuned models are, or are kept")
    parser.add_argument("--only-prepare", action="store_true", help="fill the folder, and end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        rows = measured(arguments, folder)
    if not arguments.only_prepare:
        show(rows, arguments)


def measured(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each number of new tokens, way and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    made_for = {"mib": arguments.mib, "encoding": arguments.encoding}
    if (folder / TEXT).exists() and json.loads((folder / TEXT).read_text())["for"] != made_for:
        raise SystemExit(f"{folder} was made for other settings than {made_for}: use another")
    seeds, control = range(arguments.seeds), prepared_control(folder)
    jobs = []
    for new_tokens, way, seed in product(arguments.new_tokens, arguments.ways, seeds):
        untuned = prepared(arguments, folder, new_tokens, way, seed)
        jobs.append(Job(new_tokens, way, seed, arguments.epochs, untuned))
    # Texts of the interpreter differ by its version, and the folder may have come from another.
    if not (folder / TEXT).exists():
        tuning = tuning_text(arguments, jobs[0].folder)
        text = {"for": made_for, "tuning": tuning, "held_out": held_out(2048)}
        (folder / TEXT).write_text(json.dumps(text))
    if arguments.only_prepare:
        return []
    jobs += [
        Job(0, "control", seed, epochs, control)
        for seed, epochs in product(seeds, arguments.control_epochs or [arguments.epochs])
    ]
    jobs.sort(key=lambda job: -job.epochs)
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        return rows_of(list(pool.map(partial(tuned, arguments), jobs)), folder)


def show(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
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
                "settings": {k: v for k, v in vars(arguments).items() if k != "folder"},
                "rows": rows,
                "summary": summary,
                "goals": goals,
            }
        )
    )


if __name__ == "__main__":
    main()
