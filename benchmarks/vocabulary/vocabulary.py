"""What domain vocabularies save, and what they cost: held-out tokens, speed, other domains.

    python -m benchmarks.vocabulary.vocabulary [--quick] [--vocabulary NAME …] [--domain NAME …]

Real vocabularies get new tokens for texts of single domains (`benchmarks.vocabulary.domain_texts`):
by the published selection (`paper`), the same within words (`words`), and by merges that go on
across words, as a plain tokenizer.json (`hierarchical`) or for the patch layer (`hierarchical,
patch`). Tokens are counted on files that no choice saw. The speeds are taken last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks.machine import describe
from benchmarks.vocabulary.adapted_vocabulary import (
    NOTHING,
    VOCABULARIES,
    Adapted,
    Vocabulary,
    say,
    size_of,
)
from benchmarks.vocabulary.domain_texts import DOMAINS, NUM_BYTES, other_languages, read
from benchmarks.vocabulary.vocabulary_costs import PATCH, selection_costs, speed
from benchmarks.vocabulary.vocabulary_report import ANY_LENGTH, goals, show
from optim.adaptivocab.corpus import Corpus
from optim.adaptivocab.encoded_texts import encode
from optim.adaptivocab.selection.hierarchical import Rules, barriers, select
from optim.adaptivocab.selection.removal import Removal
from optim.adaptivocab.selection.vocabulary_builder import Built, Recipe
from optim.adaptivocab.tokenizer.base_vocabulary import is_byte_token
from optim.adaptivocab.tokenizer.export import extended, parity, reduced, tokenizer_of
from optim.adaptivocab.tokenizer.segmentation import Segmenter

SIZES = (1_000, 3_000, 10_000)
METHODS: dict[str, Recipe | None] = {
    "paper": Recipe("paper", 0),
    "words": Recipe("words", 0),
    "hierarchical, like paper": None,
    "hierarchical": Recipe("hierarchical", 0),
    PATCH: Recipe("hierarchical", 0, encoding="patch"),
}


def savings(
    vocabulary: Vocabulary,
    domain: str,
    corpus: Corpus,
    sizes: Sequence[int],
    kept: dict[Any, Any],
    *,
    is_thorough: bool,
) -> list[dict[str, Any]]:
    """A row for each size, the largest first, and method; the largest's are left in `kept`.

    The longest token is searched for at the largest size; smaller ones, and the patch layer, take
    what was found. What is not thorough has the patch layer at the largest size only.
    """
    rows: list[dict[str, Any]] = []
    cap: int | None = None
    base_ids = vocabulary.encoded(corpus.held_out)
    for size in sorted(sizes, reverse=True):
        removal = vocabulary.removal(size, {domain: corpus}) if vocabulary.replaces else NOTHING
        bare = Segmenter({}, removal.expansions)
        bare_size = sum(len(bare.decompose(ids)) for ids in base_ids)
        for method, recipe in METHODS.items():
            if method == PATCH and not is_thorough and size != max(sizes):
                continue
            longest = cap if recipe is None or recipe.selector == "hierarchical" else None
            start_s = time.process_time()
            if recipe is None:
                built = _like_paper(vocabulary, removal, corpus, size)
            else:
                wanted = {**recipe.__dict__, "num_tokens": size, "longest": longest}
                built = vocabulary.builder(removal, corpus, size).build(Recipe(**wanted))
            took_s = time.process_time() - start_s
            adapted = Adapted(vocabulary.base, removal, built)
            if method == "hierarchical":
                cap = built.longest or ANY_LENGTH
            num_tokens = adapted.num_tokens(corpus.held_out, base_ids)
            rows.append(
                {"vocabulary": vocabulary.name, "domain": domain, "size": size, "method": method,
                 "base_tokens": size_of(base_ids), "tokens": num_tokens,
                 "saving": 1 - num_tokens / size_of(base_ids),
                 "removal_alone": bare_size / size_of(base_ids) - 1,
                 "encoding": built.encoding, "longest": built.longest, "dev_tokens": built.tried,
                 "longest_chosen": max(map(len, built.expansions)),
                 "parity": _parity(adapted, corpus.held_out) if size == max(sizes) else None,
                 "notes": built.notes, "build_s": took_s}
            )  # fmt: skip
            say(f"{vocabulary.name} {domain} {size} {method}: {rows[-1]['saving']:.2%}")
            if size == max(sizes):
                kept[vocabulary.name, domain, method] = adapted
    return rows


def _parity(adapted: Adapted, texts: Sequence[str]) -> dict[str, Any] | None:
    """Of a plain tokenizer.json, on held-out texts; the build itself checked it on dev texts."""
    document, base = adapted.built.document, adapted.base
    if document is None or not adapted.built.tried:
        return None
    before = reduced(base, adapted.removal.ids)
    assert before is not None
    merges = [tuple(pair) for pair in document["model"]["merges"][len(before["model"]["merges"]) :]]
    names = {name: document["model"]["vocab"][name] for name in adapted.built.names}
    found = parity(base, document, names, merges, texts)
    return {**found._asdict(), "holds": found.holds}


def _like_paper(vocabulary: Vocabulary, removal: Removal, corpus: Corpus, size: int) -> Built:
    """Merges within the published selection's bounds: three base tokens, no byte tokens.

    Its code leaves out SentencePiece's byte tokens, of which a line's end is one. So what is gained
    over it by new tokens that span line ends is told apart from what the choosing gains.
    """
    base = vocabulary.base
    builder = vocabulary.builder(removal, corpus, size)
    document = reduced(base, removal.ids)
    assert document is not None
    byte_ids = {i for i, token in base.tokens.items() if is_byte_token(token)}
    texts = encode(
        tokenizer_of(document),
        corpus.train,
        barriers=barriers(base) | (byte_ids if base.kind == "sentencepiece" else set()),
        cut=base.kind == "byte-level",
    )
    gone = dict.fromkeys(removal.ids, ())
    found = select(texts, base, size, Rules(3), removed=gone, is_native=True)
    names = dict(zip(found.names, builder.ids, strict=False))
    made = extended(document, names, found.merges)
    return Built("native", "merges", found.names, found.expansions, made, 3)


def off_domain(
    vocabulary: Vocabulary, corpora: dict[str, Corpus], size: int, caps: dict[str, int]
) -> list[dict[str, Any]]:
    """Inflation of other domains' held-out texts; the next domain is the one protected."""
    rows, names = [], list(corpora)[:3]
    texts_of = {name: corpora[name].held_out for name in names}
    texts_of["other languages"] = other_languages(NUM_BYTES // 10)
    for place, domain in enumerate(names):
        protected = names[(place + 1) % len(names)]
        both = {name: corpora[name] for name in (domain, protected)}
        for mode in ("replace", "expand") if vocabulary.replaces else ("expand",):
            removal = vocabulary.removal(size, both) if mode == "replace" else NOTHING
            builder = vocabulary.builder(removal, corpora[domain], size)
            recipe = Recipe("hierarchical", size, longest=caps[domain])
            adapted = Adapted(vocabulary.base, removal, builder.build(recipe))
            bare = Segmenter({}, removal.expansions)
            for other, texts in texts_of.items():
                if other == domain or not texts:
                    continue
                base_ids = vocabulary.encoded(texts)
                num_base = size_of(base_ids)
                num_tokens = adapted.num_tokens(texts, base_ids)
                num_bare = sum(len(bare.decompose(ids)) for ids in base_ids)
                rows.append(
                    {"vocabulary": vocabulary.name, "domain": domain, "mode": mode, "size": size,
                     "other": other,
                     "is_protected": mode == "replace" and other == protected,
                     "inflation": num_tokens / num_base - 1,
                     "removal_alone": num_bare / num_base - 1}
                )  # fmt: skip
                say(f"{mode} for {domain}: {other} {rows[-1]['inflation']:+.2%}")
    return rows


def run(names: Sequence[str], corpora: dict[str, Corpus], sizes: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {"savings": [], "off_domain": [], "selection": [], "speed": []}
    kept: dict[Any, Any] = {}
    vocabularies = [Vocabulary.of(name) for name in names]
    for place, vocabulary in enumerate(vocabularies):
        # All domains for the first vocabulary, two for the others.
        own = dict(list(corpora.items())[: None if place == 0 else 2])
        for domain, corpus in own.items():
            found["savings"] += savings(
                vocabulary, domain, corpus, sizes, kept, is_thorough=place == 0
            )
        caps = {d: kept[vocabulary.name, d, "hierarchical"].built.longest or ANY_LENGTH
                for d in own}  # fmt: skip
        if place == 0 or not vocabulary.replaces:
            found["off_domain"] += off_domain(vocabulary, own, max(sizes), caps)
    first = next(iter(corpora))
    found["selection"] = selection_costs(vocabularies[0], first, corpora[first], max(sizes))
    for vocabulary in vocabularies:
        say(f"speed: {vocabulary.name}")
        for domain in list(corpora)[:2]:
            found["speed"].append(speed(vocabulary, domain, corpora[domain], kept, rounds=6))
    found["goals"] = goals(found, sizes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one vocabulary, two domains")
    parser.add_argument("--vocabulary", action="append", choices=list(VOCABULARIES))
    parser.add_argument("--domain", action="append", choices=[each.name for each in DOMAINS])
    arguments = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    machine = describe()
    corpora: dict[str, Corpus] = {}
    num_bytes = NUM_BYTES // 2 if arguments.quick else NUM_BYTES
    for domain in DOMAINS:
        if arguments.domain and domain.name not in arguments.domain:
            continue
        corpus = read(domain, num_bytes)
        if corpus is None:
            say(f"{domain.name}: not here, left out. {domain.mend}")
        elif not arguments.quick or len(corpora) < 2:
            corpora[domain.name] = corpus
    if not corpora:
        sys.exit("none of the domains is here: install one of the packages named above")
    names = arguments.vocabulary or list(VOCABULARIES)[: 1 if arguments.quick else None]
    found = run(names, corpora, SIZES[:2] if arguments.quick else SIZES)
    show(found, Console(width=150 if not sys.stdout.isatty() else None))
    facts = {
        name: {"sha256": corpus.sha256,
               "files": [len(part) for part in (corpus.train, corpus.dev, corpus.held_out)],
               "bytes": [sum(len(t.encode()) for t in part)
                         for part in (corpus.train, corpus.dev, corpus.held_out)]}
        for name, corpus in corpora.items()
    }  # fmt: skip
    print(json.dumps({"benchmark": "vocabulary", "machine": machine, "domains": facts} | found))


if __name__ == "__main__":
    main()
