"""Files as the published code of AdaptiVocab writes them."""

from __future__ import annotations

import pickle
import pydoc_data.topics
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from optim.adaptivocab.official.reader import read_official
from optim.errors import InputError

TOPICS = pydoc_data.topics.topics
TEXT = "".join(TOPICS[name] for name in sorted(TOPICS))[:150_000]
END = "<|end|>"


@cache
def base(size: int = 500) -> PreTrainedTokenizerFast:
    """A byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, name_or_path="a/base"
    )


def first_merges(tokenizer: PreTrainedTokenizerFast) -> dict[str, tuple[str, str]]:
    import json

    rules: dict[str, tuple[str, str]] = {}
    for left, right in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]:
        rules.setdefault(left + right, (left, right))
    return rules


def published(
    tokenizer: PreTrainedTokenizerFast, num: int = 40, words_only: bool = False
) -> dict[str, Any]:
    """What the published code saves: see its save_model, reduce_vocab, find_ngrams_to_add."""
    tokens = tokenizer.tokenize(TEXT)
    vocabulary, rules, counts = tokenizer.get_vocab(), first_merges(tokenizer), Counter(tokens)
    rare = sorted(rules, key=lambda token: (counts[token], -len(token)))[:num]

    def pieces(token: str) -> list[str]:
        return [p for part in rules[token] for p in pieces(part)] if token in rare else [token]

    grams: Counter[tuple[str, ...]] = Counter()
    for n in (2, 3):
        for gram in zip(*(tokens[i:] for i in range(n)), strict=False):
            if not (words_only and any(t.startswith("Ġ") for t in gram[1:])):
                grams[gram] += n
    ngrams = {gram: score // len(gram) for gram, score in grams.most_common(num)}

    converter: dict[Any, dict[str, Any]] = {}
    for token, number in vocabulary.items():
        if token not in rare:
            converter[token] = {"old_indices": number, "new_index": len(converter)}
    model = tokenizer.backend_tokenizer.model
    for gram in ngrams:
        old = [token.id for token in model.tokenize("".join(gram))]
        converter[gram] = {"old_indices": old, "new_index": len(converter)}
    return {
        "existing_tokenizer": tokenizer,
        "ngram_dict": ngrams,
        "removed_tokens": {token: pieces(token) for token in rare},
        "id_converter": converter,
        "token_to_id_dict": {token: entry["new_index"] for token, entry in converter.items()},
        "id_to_token_dict": {entry["new_index"]: token for token, entry in converter.items()},
    }


def by_hand() -> dict[str, Any]:
    """A file whose every token is known: `th` and `Ġthe` are removed."""
    vocabulary = base().get_vocab()
    removed = {"th": ["t", "h"], "Ġthe": ["Ġt", "he"]}
    assert removed.keys() <= vocabulary.keys()
    converter: dict[Any, dict[str, Any]] = {
        token: {"old_indices": number, "new_index": number}
        for token, number in vocabulary.items()
        if token not in removed
    }
    for gram, new in ((("Ġt", "he"), vocabulary["th"]), (("Ġi", "s"), vocabulary["Ġthe"])):
        old = [vocabulary[token] for token in gram]
        converter[gram] = {"old_indices": old, "new_index": new}
    return {
        "existing_tokenizer": base(),
        "ngram_dict": {("Ġt", "he"): 9, ("Ġi", "s"): 7},
        "removed_tokens": removed,
        "id_converter": converter,
    }


def saved(folder: Path, tree: object, protocol: int | None = None) -> Path:
    path = folder / "patch_tokenizer.pkl"
    path.write_bytes(tree if isinstance(tree, bytes) else pickle.dumps(tree, protocol))
    return path


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_official(path)
    assert caught.value.source == str(path)
    assert caught.value.mend
    return caught.value
