"""What choosing domain vocabularies takes, and how fast texts are encoded with them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import median_and_spread
from benchmarks.vocabulary.adapted_vocabulary import NOTHING, Adapted, Vocabulary, size_of
from optim.adaptivocab.corpus import Corpus
from optim.adaptivocab.selection import paper
from optim.adaptivocab.selection.hierarchical import Rules, select
from optim.adaptivocab.tokenizer.export import reduced, tokenizer_of
from optim.adaptivocab.tokenizer.segmentation import Segmenter

PATCH = "hierarchical, patch"


def selection_costs(
    vocabulary: Vocabulary, domain: str, corpus: Corpus, size: int
) -> list[dict[str, Any]]:
    """Each selection twice: once for its time, once for its peak, which slows it.

    The peak is of what it allocates, in Python and in NumPy; the corpus' ids are there before it.
    """
    rows = []
    base = vocabulary.base
    builder = vocabulary.builder(NOTHING, corpus, size)
    document = reduced(base, ())
    assert document is not None
    whole = builder.encoded(vocabulary.tokenizer, corpus.train, cut=False)
    chunks = builder.encoded(tokenizer_of(document), corpus.train, cut=base.kind == "byte-level")
    calls: dict[str, Callable[[], int]] = {
        "paper": lambda: len(paper.select(whole, base, size)),
        "hierarchical": lambda: len(
            select(chunks, base, size, Rules(None), removed={}, is_native=True).names
        ),
    }
    for method, call in calls.items():
        start_s = time.process_time()
        num_found = call()
        took_s = time.process_time() - start_s
        tracemalloc.start()
        call()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        millions = len(whole) / 1e6
        rows.append(
            {"vocabulary": vocabulary.name, "domain": domain, "method": method, "size": num_found,
             "tokens": len(whole), "seconds_per_million": took_s / millions,
             "peak_bytes_per_million": peak_bytes / millions}
        )  # fmt: skip
    return rows


def speed(
    vocabulary: Vocabulary, domain: str, corpus: Corpus, kept: dict[Any, Any], rounds: int
) -> dict[str, Any]:
    """CPU time of one thread: base and new tokenizer in fresh processes, the patch layer here."""
    texts = corpus.held_out
    num_bytes = sum(len(text.encode()) for text in texts)
    native: Adapted = kept[vocabulary.name, domain, "hierarchical"]
    patch: Adapted = kept[vocabulary.name, domain, PATCH]
    base_ids = vocabulary.encoded(texts)
    num_base = size_of(base_ids)
    documents = {"base": vocabulary.base.document, "native": native.built.document}
    times_s = _encode_times({k: d for k, d in documents.items() if d}, corpus, rounds)
    for method in ("dp", "greedy"):
        segmenter = patch.segmenter(method)
        times_s[method] = [_segment_s(segmenter, base_ids) for _ in range(rounds + 1)][1:]
    times_s["patch"] = [a + b for a, b in zip(times_s["base"], times_s["dp"], strict=True)]
    found: dict[str, Any] = {"vocabulary": vocabulary.name, "domain": domain,
                             "size": len(native.built.names), "bytes": num_bytes,
                             "base_tokens": num_base}  # fmt: skip
    for name, each_s in times_s.items():
        found[name] = {
            "bytes_per_s": median_and_spread([num_bytes / s for s in each_s]),
            "base_tokens_per_s": median_and_spread([num_base / s for s in each_s]),
            "of_base": median_and_spread(
                [b / s for b, s in zip(times_s["base"], each_s, strict=True)]
            ),
        }
    return found


def _encode_times(documents: dict[str, Any], corpus: Corpus, rounds: int) -> dict[str, list[float]]:
    """A process each round; the tokenizers change places from one to the next."""
    times_s: dict[str, list[float]] = {name: [] for name in documents}
    with tempfile.TemporaryDirectory() as folder:
        parts = {"warm": corpus.dev, "texts": corpus.held_out}
        for name, content in {**documents, **parts}.items():
            (Path(folder) / f"{name}.json").write_text(json.dumps(content))
        names = list(documents)
        for _ in range(rounds):
            command = [sys.executable, "-m", "benchmarks.vocabulary.encode_times", folder, *names]
            made = subprocess.run(command, check=True, capture_output=True, text=True)
            for name, took_s in json.loads(made.stdout).items():
                times_s[name].append(took_s)
            names.reverse()
    return times_s


def _segment_s(segmenter: Segmenter, base_ids: list[list[int]]) -> float:
    start_s = time.process_time()
    for ids in base_ids:
        segmenter.segment(ids)
    return time.process_time() - start_s
