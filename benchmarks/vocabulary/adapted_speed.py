"""What fewer tokens are worth in time: bytes of a domain's text per second, said token by token.

    python -m benchmarks.vocabulary.adapted_speed [--new-tokens 10000] [--chunks 8] [--chunk-bytes
    256]

A model of a real size (the shapes of Llama-3.2-1B with Mistral's 32,768 tokens; weights are random,
since speed does not depend on their values) has to say held-out text of a domain at batch 1. The
text is given, so that every vocabulary says the same bytes, in as many steps as it has tokens.
`replace` has the base's number of rows, `expand` more of them, which every step pays for. The limit
is the one over the share of steps that is left; quality is
`benchmarks.vocabulary.adaptation_quality`'s.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from transformers import DynamicCache, PreTrainedModel

from benchmarks.engine.real_shapes import dense_model
from benchmarks.machine import describe, median_and_spread
from benchmarks.vocabulary.adapted_vocabulary import NOTHING, Vocabulary, say
from benchmarks.vocabulary.domain_texts import DOMAINS, NUM_BYTES, read
from optim.adaptivocab.corpus import Corpus
from optim.adaptivocab.selection.vocabulary_builder import Recipe
from optim.adaptivocab.tokenizer.export import tokenizer_of
from optim.adaptivocab.training.embeddings import extend
from optim.adaptivocab.training.segments import cut
from optim.model import DTYPES

MODEL, VOCABULARY = "llama-3.2-1b", "mistral-v0.3-32k"
START = 1
WARM_UP = 8
"""Steps of each rival before the first that counts."""
GOAL, GOAL_SAVING = 1.15, 0.2
"""Times the base's bytes per second, at least, where this share of the tokens is saved."""


@dataclass
class Rival:
    """A model and the tokens that it says a text in."""

    model: PreTrainedModel
    tokenizer: Tokenizer

    def ids(self, text: str) -> list[int]:
        return [START, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def wall_s(self, ids: Sequence[int]) -> float:
        """Seconds of one step for each id, behind those before it."""
        cache = DynamicCache()
        start = perf_counter()
        with torch.inference_mode():
            for each in ids:
                out = self.model(
                    input_ids=torch.tensor([[each]]), past_key_values=cache, use_cache=True
                )
                out.logits[0, -1].argmax()
        return perf_counter() - start


def adapted(
    base: Rival, vocabulary: Vocabulary, corpus: Corpus, num_tokens: int, *, replaces: bool
) -> Rival:
    """The model with rows for new tokens, and its plain tokenizer."""
    removal = vocabulary.removal(num_tokens, {"own": corpus}) if replaces else NOTHING
    builder = vocabulary.builder(removal, corpus, num_tokens)
    built = builder.build(Recipe("hierarchical", num_tokens, encoding="native"))
    assert built.document is not None
    expansions = dict(zip(builder.ids, built.expansions, strict=False))
    return Rival(extend(base.model, expansions), tokenizer_of(built.document))


def chunks(corpus: Corpus, number: int, num_bytes: int) -> list[str]:
    """Pieces of held-out text, at random places."""
    found = [each for each in cut(corpus.held_out, num_bytes) if len(each.encode()) > num_bytes / 2]
    return random.Random(0).sample(found, number)


def measure(rivals: Mapping[str, Rival], texts: Sequence[str]) -> dict[str, Any]:
    """Each text by each rival, which change places from one to the next."""
    for rival in rivals.values():
        rival.wall_s(rival.ids(texts[0])[:WARM_UP])
    rows = []
    names = list(rivals)
    for place, text in enumerate(texts):
        row: dict[str, Any] = {"bytes": len(text.encode())}
        for name in names[place % len(names) :] + names[: place % len(names)]:
            ids = rivals[name].ids(text)
            row[name] = {"steps": len(ids), "wall_s": rivals[name].wall_s(ids)}
        rows.append(row)
        say(f"{place + 1} of {len(texts)}: {row}")
    return {"texts": rows, "rivals": {name: _summary(rows, name) for name in names}}


def _summary(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    steps, base_steps = (sum(row[each]["steps"] for row in rows) for each in (name, "base"))
    return {
        "steps": steps,
        "saving": 1 - steps / base_steps,
        "limit": base_steps / steps,
        "bytes_per_s": median_and_spread([row["bytes"] / row[name]["wall_s"] for row in rows]),
        "step_s": median_and_spread([row[name]["wall_s"] / row[name]["steps"] for row in rows]),
        "of_base": median_and_spread([row["base"]["wall_s"] / row[name]["wall_s"] for row in rows]),
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    table = Table(title="Bytes of held-out text per second, batch 1: median (least-largest)")
    for heading in ("vocabulary", "rows", "fewer steps", "step", "of the base's bytes/s", "limit"):
        table.add_column(heading, justify="right")
    for name, each in found["rivals"].items():
        step, ratio = each["step_s"], each["of_base"]
        table.add_row(
            name, f"{each['rows']:,}", f"{each['saving']:.1%}", f"{1000 * step['median']:.0f} ms",
            f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})",
            f"{each['limit']:.2f}x",
        )  # fmt: skip
    console.print(table)
    for goal, is_met in found["goals"].items():
        console.print(f"{'met' if is_met else 'NOT MET'}: {goal}")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    domain = next(each for each in DOMAINS if each.name == arguments.domain)
    corpus = read(domain, NUM_BYTES)
    if corpus is None:
        raise SystemExit(f"{domain.name}: {domain.mend}")
    vocabulary = Vocabulary.of(VOCABULARY)
    dtype = DTYPES[arguments.dtype]
    model = dense_model(MODEL, dtype, torch.device("cpu"), vocabulary.base.size)
    rivals = {"base": Rival(model, vocabulary.tokenizer)}
    for name in ("replace", "expand"):
        say(f"choosing new tokens: {name}")
        rivals[name] = adapted(
            rivals["base"], vocabulary, corpus, arguments.new_tokens, replaces=name == "replace"
        )
    found = measure(rivals, chunks(corpus, arguments.chunks, arguments.chunk_bytes))
    for name, rival in rivals.items():
        found["rivals"][name]["rows"] = rival.model.config.vocab_size
    found["goals"] = {
        f"{name}: at least {GOAL}x the bytes/s with at least {GOAL_SAVING:.0%} fewer tokens": (
            each["saving"] >= GOAL_SAVING and each["of_base"]["median"] >= GOAL
        )
        for name, each in found["rivals"].items()
        if name != "base"
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--new-tokens", type=int, default=10_000)
    parser.add_argument("--domain", default="python", choices=[each.name for each in DOMAINS])
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--chunk-bytes", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = run(arguments)
    show(found, Console(width=110))
    settings = {"model": MODEL, "vocabulary": VOCABULARY, **vars(arguments)}
    print(json.dumps({"benchmark": "adapted_speed", "machine": describe(), "settings": settings,
                      **found}))  # fmt: skip


if __name__ == "__main__":
    main()
