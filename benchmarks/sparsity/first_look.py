"""What the quick preparation of LaRoSA loses against the full one, and how long both take.

    python -m benchmarks.sparsity.first_look [--model demo] [--windows 24]

Bits per byte of held-out documentation, every token masked, beyond the dense model's, which is the
limit. Prints a line for each, and as its last line JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.sparsity.sparsity_quality import Text
from jobs.data.demo_corpus import training_documents
from optim.larosa.optimization import Larosa
from optim.larosa.preparation import LarosaPreparation
from optim.model import LanguageModel, load

LEVELS = (0.25, 0.4)
PRESETS: dict[str, dict[str, Any]] = {"quick": {**LarosaPreparation.quick}, "full": {}}


def measured(lm: LanguageModel, text: Text, dense: float, preset: str) -> dict[str, Any]:
    """Seconds of one preparation, and the excess bits per byte at each level."""
    preparation = LarosaPreparation.model_validate(
        {"levels": LEVELS, "break_even": False} | PRESETS[preset]
    )
    corpus = (document.text for document in training_documents() if not document.is_source)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "artifact"
        wall, cpu = perf_counter(), process_time()
        preparation.run(lm, corpus, out, source="demo/training")
        taken = {"wall_s": perf_counter() - wall, "cpu_s": process_time() - cpu}
        excess = {}
        for level in LEVELS:
            chosen = Larosa(artifact=str(out), sparsity=level, sparsify_prefill=True)
            excess[str(level)] = text.bits_per_byte(chosen.apply(lm)) - dense
    return {"preset": preset, **taken, "excess": excess}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--windows", type=int, default=24, help="of 512 tokens each")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = load(arguments.model, dtype="float32", device="cpu")
    text = Text(lm, arguments.windows)
    dense = text.bits_per_byte(lm)
    rows = [measured(lm, text, dense, preset) for preset in PRESETS]
    for row in rows:
        levels = ", ".join(f"+{v:.4f} at {float(k):.0%}" for k, v in row["excess"].items())
        print(f"{row['preset']}: {levels} of {dense:.4f}; {row['cpu_s']:.0f} s of CPU")
    print(
        json.dumps({"machine": describe(), "model": arguments.model, "dense": dense, "rows": rows})
    )


if __name__ == "__main__":
    main()
