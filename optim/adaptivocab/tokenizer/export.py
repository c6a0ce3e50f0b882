"""A plain tokenizer.json with another vocabulary, and the proof that it does what it should."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from optim.adaptivocab.encoded_texts import batches
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary, merged
from optim.adaptivocab.tokenizer.pretokenizer import glued

Document = dict[str, Any]


class Parity(NamedTuple):
    """How a native tokenizer compares with what it should be, on texts that chose nothing."""

    num_texts: int
    num_drifted: int
    """Texts that the base vocabulary is cut otherwise in, without a single token changed."""
    num_different: int
    """Texts whose ids are not those of the reference, or that do not come back as they do from
    the base."""

    @property
    def holds(self) -> bool:
        return not self.num_drifted and not self.num_different


def reduced(base: BaseVocabulary, removed: Collection[int]) -> Document | None:
    """The base's tokenizer.json without some tokens and with the longer chunks of `glue`.

    None where the base cuts texts in a way that cannot be carried over.
    """
    document = base.copy()
    model = document["model"]
    gone = {base.tokens[i] for i in removed}
    names = base.tokens
    # Added tokens that are not in it are numbered after its size, which changes.
    vocabulary = model["vocab"] | {names[i]: i for i in base.added}
    model["vocab"] = {token: i for token, i in vocabulary.items() if token not in gone}
    model["merges"] = [
        [names[left], names[right]]
        for left, right, whole in base.merges
        if not gone.intersection((names[left], names[right], names[whole]))
    ]
    # A chunk of several words that is a token is one by its merges, as any other.
    model["ignore_merges"] = False
    if base.kind == "byte-level":
        steps = glued(base)
        if steps is None:
            return None
        document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    elif not _is_whole(document):
        return None
    return document


def _is_whole(document: Document) -> bool:
    """Whether a SentencePiece-style tokenizer looks at a text as one piece."""
    step = document["pre_tokenizer"]
    if step is None:
        return True
    is_metaspace = step["type"] == "Metaspace" and not step.get("split", True)
    # Every space is a ▁ by then, so this cuts nothing.
    is_idle = step["type"] == "Split" and step["pattern"] == {"String": " "}
    return is_metaspace or is_idle


def extended(
    document: Document, names: Mapping[str, int], merges: Iterable[tuple[str, str]]
) -> Document:
    """A reduced tokenizer.json with new tokens (name -> id) and their merges after the others."""
    made: Document = json.loads(json.dumps(document))
    model = made["model"]
    vocabulary = {**model["vocab"], **names}
    model["vocab"] = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    model["merges"] += [list(pair) for pair in merges]
    if model.get("byte_fallback"):
        made["decoder"] = _with_ascii(made["decoder"], names)
    return made


def _with_ascii(decoder: Document, names: Iterable[str]) -> Document:
    """A decoder that knows `<0x0A>` and its like within a longer token, too."""
    text = "".join(names)
    inside = [byte for byte in range(0x80) if f"<0x{byte:02X}>" in text]
    first = [
        {"type": "Replace", "pattern": {"String": f"<0x{byte:02X}>"}, "content": chr(byte)}
        for byte in inside
    ]
    rest = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return {"type": "Sequence", "decoders": [*first, *rest]} if first else decoder


def tokenizer_of(document: Document) -> Tokenizer:
    """The tokenizer that a tokenizer.json describes."""
    return Tokenizer.from_str(json.dumps(document, ensure_ascii=False))


def parity(
    base: BaseVocabulary,
    document: Document,
    names: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    texts: Iterable[str],
) -> Parity:
    """Compare an extended tokenizer.json with its parts on texts.

    The base with longer chunks has to give the base's own ids; all merges, carried out in plain
    Python on what the reduced base gives, the new tokenizer's; and its decoding the base's.
    """
    original = tokenizer_of(base.document)
    longer = reduced(base, ())
    assert longer is not None
    whole, native = tokenizer_of(longer), tokenizer_of(document)
    kept = set(document["model"]["vocab"]) - set(names)
    gone = [i for i, token in base.tokens.items() if i not in base.added and token not in kept]
    before = reduced(base, gone)
    assert before is not None
    without = tokenizer_of(before)
    ids = {**base.ids, **names}
    # The base's merges come first, and come back where a new one makes a token of the base.
    ranks = {
        (ids[left], ids[right]): (rank, ids[left + right])
        for rank, (left, right) in reversed([*enumerate([*before["model"]["merges"], *merges])])
    }
    num_texts = num_drifted = num_different = 0
    for batch in batches(texts):
        own = [t.encode_batch(batch, add_special_tokens=False) for t in (original, whole, without)]
        made = native.encode_batch(batch, add_special_tokens=False)
        for plain, glue, start, new in zip(*own, made, strict=True):
            num_texts += 1
            num_drifted += plain.ids != glue.ids
            expected = _reference(start.ids, start.word_ids, ranks, base.added)
            num_different += expected != new.ids or original.decode(
                plain.ids, skip_special_tokens=False
            ) != native.decode(new.ids, skip_special_tokens=False)
    return Parity(num_texts, num_drifted, num_different)


def _reference(
    ids: list[int],
    chunks: Sequence[int | None],
    ranks: Mapping[tuple[int, int], tuple[int, int]],
    added: frozenset[int],
) -> list[int]:
    """Merges on the reduced base's ids, within each of its chunks."""
    found: list[int] = []
    pairs = zip(ids, chunks, strict=True)
    for (_, is_added), chunk in groupby(pairs, key=lambda pair: (pair[1], pair[0] in added)):
        own = [number for number, _ in chunk]
        found += own if is_added else merged(own, ranks)
    return found
