"""The tokenizer's files of an artifact: plain ones, or the base's with a patch layer."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from optim.adaptivocab.patched import PatchedTokenizer
from optim.adaptivocab.selection.vocabulary_builder import Built
from optim.adaptivocab.tokenizer.export import Document
from optim.adaptivocab.tokenizer.tokens import Tokens

PLAIN_CLASS = "PreTrainedTokenizerFast"
"""Takes a tokenizer.json as it is; classes of single models make theirs anew from the merges."""


def write_tokenizer(
    folder: Path, base: PreTrainedTokenizerBase, tokens: Tokens, built: Built
) -> None:
    """Write what `AutoTokenizer` reads. A patch layer's class is known once it was imported."""
    if built.document is not None:
        _write_plain(folder, base, built.document)
        return
    PatchedTokenizer.of(
        base,
        removed={token.id: token.parts for token in tokens.removed if token.parts},
        new={token.id: token.parts for token in tokens.new},
        method="greedy" if built.method == "greedy" else "dp",
    ).save_pretrained(folder)


def _write_plain(folder: Path, base: PreTrainedTokenizerBase, document: Document) -> None:
    base.save_pretrained(folder)
    Tokenizer.from_str(json.dumps(document)).save(str(folder / "tokenizer.json"))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = PLAIN_CLASS
    # Switches of single models' classes; the file's own post-processor says what is added.
    for name in ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "auto_map"):
        config.pop(name, None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    loaded = AutoTokenizer.from_pretrained(folder)
    made = Tokenizer.from_str(json.dumps(document))
    sample = "A  sample,\n\tof 3 lines: naïve\n  ▁ <s> "
    if loaded(sample)["input_ids"] != made.encode(sample).ids:
        raise RuntimeError("the tokenizer that was written does not come back as it was")
