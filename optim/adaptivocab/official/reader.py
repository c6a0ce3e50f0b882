"""What the published AdaptiVocab code saves as `patch_tokenizer.pkl`, read without running it.

Such a file is a pickle: a dict with a tokenizer object of transformers, the removed tokens, the
n-grams, and ids. Loaded with `pickle` it may do anything. Here plain containers are made, and in
the place of every object a stand-in that remembers what the pickle says of it; nothing is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from transformers import PreTrainedTokenizerBase

from optim.adaptivocab.official.inert_pickle import StandIn, load_inert, refuse
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.errors import InputError

Ngram = tuple[str | int, ...]
"""Token strings of the base, or its ids: as they are in the file (the published code: strings)."""


class Conversion(NamedTuple):
    """What `id_converter` says of a token."""

    old: tuple[int, ...]
    """Ids of the base: its own, or for an n-gram the encoding of its text by the base."""
    new: int


@dataclass(frozen=True)
class Official:
    """A `patch_tokenizer.pkl` whose parts agree with each other."""

    source: str
    base_name: str | None
    """Name or path of the tokenizer that it was made for, where the file says it."""
    removed: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]
    """The kept tokens into which each removed one is split, according to the file."""
    ngrams: tuple[tuple[Ngram, int | float], ...]
    """With their frequencies, by order of selection."""
    converter: Mapping[str | Ngram, Conversion]
    """Every token of the new vocabulary: a kept token's string, or an n-gram."""
    faults: tuple[str, ...]
    """What is wrong with it by the published code's own doing, in sentences."""

    @property
    def unmatchable(self) -> tuple[Ngram, ...]:
        """N-grams that hold a removed token: it is split before n-grams are looked for."""
        return _unmatchable(self.ngrams, self.converter)


def read_official(path: str | Path) -> Official:
    """Read a `patch_tokenizer.pkl`; nothing in it is run.

    Raises InputError where it is no such file, where its parts contradict each other, and where it
    names anything but plain containers and classes of transformers and tokenizers.
    """
    path = Path(path).expanduser()
    tree = load_inert(path)
    names = ("existing_tokenizer", "ngram_dict", "removed_tokens", "id_converter")
    if type(tree) is not dict or any(name not in tree for name in names):
        refuse(path, None, f"is no patch_tokenizer.pkl: not a dict with {', '.join(names)}")
    removed = _removed(path, tree["removed_tokens"])
    ngrams = _ngrams(path, tree["ngram_dict"])
    converter = _converter(path, tree["id_converter"])
    _require_agreement(path, tree, removed, ngrams, converter)
    tokenizer = tree["existing_tokenizer"]
    return Official(
        source=str(path),
        base_name=_base_name(tokenizer),
        removed=tuple(removed),
        parts=tuple(removed.values()),
        ngrams=ngrams,
        converter=MappingProxyType(converter),
        faults=tuple(_faults(tokenizer, ngrams, converter)),
    )


def adapted(
    official: Official, base: PreTrainedTokenizerBase
) -> tuple[dict[int, tuple[int, ...]], list[tuple[int, ...]]]:
    """The file's vocabulary in ids of its base: removed id -> kept ids, and the n-grams' ids.

    A removed token is split by the first merge that makes it, until all parts are kept (paper,
    algorithm 2). The n-grams are in order of selection, without `official.unmatchable`. Raises
    InputError where `base` is not BPE or not the tokenizer that the file was made for.
    """
    vocabulary = BaseVocabulary.of(base)
    _require_base(official, vocabulary)
    ids = vocabulary.ids
    gone = {ids[token] for token in official.removed}
    removed = {}
    for token, parts in zip(official.removed, official.parts, strict=True):
        split = _split(ids[token], gone, vocabulary.parts)
        if split is None or tuple(vocabulary.tokens[i] for i in split) != parts:
            _other_base(official, f"its merges do not split {shown(token)} as the file does")
        removed[ids[token]] = split
    dropped = set(official.unmatchable)
    kept = (ngram for ngram, _ in official.ngrams if ngram not in dropped)
    new = [tuple(ids[t] if isinstance(t, str) else t for t in ngram) for ngram in kept]
    return removed, list(dict.fromkeys(new))


def _split(
    token: int, removed: set[int], parts: Mapping[int, tuple[int, int]]
) -> tuple[int, ...] | None:
    found, pending = [], [token]
    while pending:
        current = pending.pop()
        if current not in removed:
            found.append(current)
        elif current in parts:
            pending.extend(reversed(parts[current]))
        else:
            return None
    return tuple(found)


def _require_base(official: Official, vocabulary: BaseVocabulary) -> None:
    kept = {t: c.old[0] for t, c in official.converter.items() if isinstance(t, str)}
    for token, number in kept.items():
        found = vocabulary.ids.get(token)
        if found != number:
            _other_base(official, f"{shown(token)} has id {number} in the file, and {found} in it")
    for token in official.removed:
        if token not in vocabulary.ids:
            _other_base(official, f"it has no token {shown(token)}, which the file removes")
    # Tokens that a user added to the base since then take part in no merge.
    for token in sorted(vocabulary.ids.keys() - kept.keys() - set(official.removed)):
        if vocabulary.ids[token] not in vocabulary.added:
            _other_base(official, f"the file knows nothing of its token {shown(token)}")
    known = set(kept.values()) | {vocabulary.ids[token] for token in official.removed}
    for ngram, _ in official.ngrams:
        if any(isinstance(t, int) and t not in known for t in ngram):
            _other_base(official, f"it has not all ids of the n-gram {shown(ngram)}")


def _other_base(official: Official, problem: str) -> NoReturn:
    name = official.base_name or "the tokenizer that the file was made for"
    raise InputError(
        f"was made for another tokenizer than the model's: {problem}",
        source=official.source,
        mend=f"Give the model of {name}",
    )


def _removed(path: Path, value: object) -> dict[str, tuple[str, ...]]:
    field = "removed_tokens"
    if type(value) is not dict:
        refuse(path, field, "is not a dict of a token's string to those of its parts")
    found: dict[str, tuple[str, ...]] = {}
    for token, parts in value.items():
        whole = type(parts) in (list, tuple) and len(parts) > 1
        if type(token) is not str or not whole or any(type(p) is not str or not p for p in parts):
            refuse(path, field, "holds a token without a list of two or more strings, its parts")
        if "".join(parts) != token:
            refuse(
                path,
                field,
                f"{shown(token)} is another text than its parts {shown(parts)}",
            )
        found[token] = tuple(parts)
    if any(part in found for parts in found.values() for part in parts):
        refuse(path, field, "splits a token into one that is itself removed")
    return found


def _ngrams(path: Path, value: object) -> tuple[tuple[Ngram, int | float], ...]:
    field = "ngram_dict"
    if type(value) is tuple and len(value) == 1:
        value = value[0]  # The published `load_model` has a comma too many; saved again, it stays.
    if type(value) is not dict:
        refuse(path, field, "is not a dict of n-grams to frequencies")
    for ngram, frequency in value.items():
        if not _is_ngram(ngram):
            refuse(path, field, "holds a key that is no tuple of two or more tokens")
        if type(frequency) not in (int, float) or not math.isfinite(frequency):
            refuse(path, field, f"the frequency of {shown(ngram)} is not a number")
    return tuple(value.items())


def _is_ngram(value: object) -> bool:
    if type(value) is not tuple or len(value) < 2:
        return False
    return all(type(t) is str or (type(t) is int and t >= 0) for t in value)


def _converter(path: Path, value: object) -> dict[str | Ngram, Conversion]:
    field = "id_converter"
    if type(value) is not dict:
        refuse(path, field, "is not a dict of tokens to their ids")
    found: dict[str | Ngram, Conversion] = {}
    for token, entry in value.items():
        if type(token) is not str and not _is_ngram(token):
            refuse(path, field, "holds a key that is neither a token's string nor an n-gram")
        fields: dict[Any, Any] = entry if type(entry) is dict else {}
        old: Any = fields.get("old_indices")
        new: Any = fields.get("new_index")
        old = [old] if type(old) is int else old
        whole = type(old) in (list, tuple) and all(type(i) is int and i >= 0 for i in old)
        if not whole or not old or type(new) is not int or new < 0:
            refuse(path, field, f"{shown(token)} has no old_indices and new_index that are ids")
        if isinstance(token, str) and len(old) != 1:
            refuse(path, field, f"{shown(token)} has {len(old)} old ids")
        found[token] = Conversion(tuple(old), new)
    return found


def _require_agreement(
    path: Path,
    tree: dict[Any, Any],
    removed: Mapping[str, tuple[str, ...]],
    ngrams: tuple[tuple[Ngram, int | float], ...],
    converter: Mapping[str | Ngram, Conversion],
) -> None:
    field = "id_converter"
    kept = {token: c.old[0] for token, c in converter.items() if isinstance(token, str)}
    if len(set(kept.values())) < len(kept) or len({c.new for c in converter.values()}) < len(
        converter
    ):
        refuse(path, field, "gives one id to two tokens")
    if {ngram for ngram, _ in ngrams} != converter.keys() - kept.keys():
        refuse(path, field, "has not the same n-grams as ngram_dict")
    if kept.keys() & removed.keys():
        refuse(path, field, "has ids for removed tokens")
    strings = {t for ngram, _ in ngrams for t in ngram if isinstance(t, str)}
    strings.update(part for parts in removed.values() for part in parts)
    if unknown := strings - kept.keys() - removed.keys():
        refuse(path, field, f"knows nothing of the token {shown(min(unknown))}")
    numbers = {token: c.new for token, c in converter.items()}
    if tree.get("token_to_id_dict", numbers) != numbers:
        refuse(path, "token_to_id_dict", "contradicts id_converter")
    tokens = {number: token for token, number in numbers.items()}
    if tree.get("id_to_token_dict", tokens) != tokens:
        refuse(path, "id_to_token_dict", "contradicts id_converter")


def _unmatchable(
    ngrams: tuple[tuple[Ngram, int | float], ...], converter: Mapping[str | Ngram, Conversion]
) -> tuple[Ngram, ...]:
    kept = {token for token in converter if isinstance(token, str)}
    numbers = {converter[token].old[0] for token in kept}
    return tuple(
        ngram
        for ngram, _ in ngrams
        if any(t not in (kept if isinstance(t, str) else numbers) for t in ngram)
    )


def _faults(
    tokenizer: object,
    ngrams: tuple[tuple[Ngram, int | float], ...],
    converter: Mapping[str | Ngram, Conversion],
) -> Iterator[str]:
    """Those of the published code's faults that can be seen in a file."""
    yield "It is a pickle, which can run any code when it is loaded; it was read without that."
    if ngrams and not any(str(t)[:1] in ("▁", "Ġ") for ngram, _ in ngrams for t in ngram[1:]):
        yield "No n-gram goes beyond a word: the published code merges within words only."
    dead = set(_unmatchable(ngrams, converter))
    if dead:
        yield (
            f"{len(dead)} of {len(ngrams)} n-grams hold removed tokens and can never match; "
            "they are left out."
        )
    alive = [ngram for ngram, _ in ngrams if ngram not in dead]
    if num_hidden := _num_hidden(alive):
        yield (
            f"{num_hidden} n-grams begin with one that was selected before them: the published "
            "code takes the first match, and never uses them; here the longest wins."
        )
    kept = {t: c for t, c in converter.items() if isinstance(t, str)}
    moved = {token for token, c in kept.items() if c.old != (c.new,)}
    if moved:
        special = [shown(token) for token in _special_tokens(tokenizer) if token in moved]
        also = f", the special {', '.join(special)} among them" if special else ""
        yield (
            f"{len(moved)} of {len(kept)} kept tokens have other ids than in the base{also}; "
            "here they keep the base's."
        )
    num_other = sum(
        converter[ngram].old != tuple(kept[t].old[0] if isinstance(t, str) else t for t in ngram)
        for ngram in alive
    )
    if num_other:
        yield (
            f"The embeddings of {num_other} n-grams were made from other tokens than theirs: "
            "the published code encodes their text anew, removed tokens included."
        )


def _num_hidden(ngrams: list[Ngram]) -> int:
    earlier: set[Ngram] = set()
    found = 0
    for ngram in ngrams:
        found += any(ngram[:n] in earlier for n in range(2, len(ngram)))
        earlier.add(ngram)
    return found


def _state(value: object) -> dict[Any, Any]:
    state = value.state if isinstance(value, StandIn) else None
    return state if type(state) is dict else {}


def _base_name(tokenizer: object) -> str | None:
    name = tokenizer if type(tokenizer) is str else _state(tokenizer).get("name_or_path")
    return name if type(name) is str and name and name.isprintable() else None


def _special_tokens(tokenizer: object) -> list[str]:
    settings = _state(tokenizer).get("init_kwargs")
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    values = [settings.get(name) for name in names] if type(settings) is dict else []
    texts = [v if type(v) is str else _state(v).get("content") for v in values]
    return list(dict.fromkeys(text for text in texts if type(text) is str))
