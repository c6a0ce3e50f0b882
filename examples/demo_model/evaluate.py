"""Held-out bits per byte of the demo model, beside compressors and an n-gram model.

    python -m examples.demo_model.evaluate --model optim/demo_model

For the language models every held-out document costs the bits of all its tokens and of the end of
text after them, given nothing but an end of text before them. The compressors get the documents
as one stream with nothing in between, so they need not say where a document ends. All are divided
by the same number: the UTF-8 bytes of the documents' texts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.demo_model.ngram import KneserNey
from jobs.data.demo_corpus import Document, held_out_by_domain, training_documents

NGRAM_ORDER = 5
OVERLAP_TOKENS = 512
"""Tokens that a further window of a long document repeats as context, without counting them."""


@torch.inference_mode()
def model_bits(model: Any, tokens: Sequence[int], end: int) -> float:
    """Bits that the model needs for a document's tokens and the end of text after them."""
    context = int(model.config.max_position_embeddings)
    stream = torch.tensor([end, *tokens, end])
    bits, counted, start = 0.0, 1, 0
    while counted < len(stream):
        window = stream[start : start + context + 1]
        logits = model(input_ids=window[:-1].unsqueeze(0), use_cache=False).logits[0].float()
        nats = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
        bits += float(nats[counted - start - 1 :].sum()) / math.log(2)
        counted = start + len(window)
        start += context - OVERLAP_TOKENS
    return bits


def xz_bytes(text: bytes) -> int:
    return len(lzma.compress(text, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))


def gzip_bytes(text: bytes) -> int:
    return len(gzip.compress(text, compresslevel=9, mtime=0))


def joined(documents: Sequence[Document]) -> bytes:
    return "".join(each.text for each in documents).encode("utf-8")


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Bits per byte by domain, then over all held-out documents, for each way of predicting."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    load: Any = AutoModelForCausalLM
    model = load.from_pretrained(folder, dtype=torch.float32).eval()
    end = int(model.config.eos_token_id)

    def encode(text: str) -> list[int]:
        return list(tokenizer.backend_tokenizer.encode(text).ids)

    training = list(training_documents())
    ngram = KneserNey(
        [encode(each.text) for each in training], NGRAM_ORDER, model.config.vocab_size, end
    )
    primer = joined(training)
    primer_bytes = xz_bytes(primer)
    groups: dict[str, tuple[Document, ...]] = {
        str(name): group for name, group in held_out_by_domain().items()
    }
    tokens = {name: [encode(each.text) for each in group] for name, group in groups.items()}
    ours = {
        name: sum(model_bits(model, each, end) for each in group) for name, group in tokens.items()
    }
    theirs = {
        name: sum(float(ngram.bits(each).sum()) for each in group) for name, group in tokens.items()
    }
    ours["all"], theirs["all"] = sum(ours.values()), sum(theirs.values())
    groups["all"] = tuple(each for group in groups.values() for each in group)
    table: dict[str, dict[str, float]] = {}
    for name, group in groups.items():
        text = joined(group)
        table[name] = {
            "documents": len(group),
            "bytes": len(text),
            "model": ours[name] / len(text),
            f"{NGRAM_ORDER}-gram": theirs[name] / len(text),
            "xz -9e after training text": (xz_bytes(primer + text) - primer_bytes) * 8 / len(text),
            "xz -9e": xz_bytes(text) * 8 / len(text),
            "gzip -9": gzip_bytes(text) * 8 / len(text),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    table = measure(arguments.model)
    columns = list(table)
    print(f"{'held-out bits per byte':30}" + "".join(f"{each:>12}" for each in columns))
    for row in table["all"]:
        digits = 0 if row in ("documents", "bytes") else 3
        cells = "".join(f"{table[column][row]:12.{digits}f}" for column in columns)
        print(f"{row:30}{cells}")
    print(json.dumps({"bits_per_byte": table, "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
