"""Two real vocabularies, as plain tokenizers of transformers: Mistral's 32k and 131k ones.

`mistral-common` carries them as a SentencePiece model and as tekken.json; hub repositories carry
the same two as a tokenizer.json, which is what is made here.
"""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors as post_processors
from transformers import PreTrainedTokenizerFast

SPECIAL_PIECES = re.compile(r"<unk>|<s>|</s>|\[/?[A-Za-z_]+(_\d+)?\]")


def _data() -> Path:
    import mistral_common

    return Path(mistral_common.__file__).parent / "data"


@cache
def sentencepiece_v3() -> PreTrainedTokenizerFast:
    """Mistral-7B-v0.3's: BPE over characters, 32,768 ids, bytes as a fallback."""
    import sentencepiece

    file = _data() / "mistral_instruct_tokenizer_240323.model.v3"
    model: Any = sentencepiece.SentencePieceProcessor(model_file=str(file))
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for whole in range(len(pieces)):
        if model.is_control(whole) or model.is_byte(whole) or model.is_unknown(whole):
            continue
        piece = pieces[whole]
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                merges.append((-model.get_score(whole), ids[left], ids[right], left, right))
    merges.sort()
    made = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[(left, right) for *_, left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(
        [
            AddedToken(piece, normalized=False, special=True)
            for i, piece in enumerate(pieces)
            if SPECIAL_PIECES.fullmatch(piece)
        ]
    )
    return _fast(made, bos="<s>", eos="</s>", unk="<unk>")


@cache
def tekken() -> PreTrainedTokenizerFast:
    """Mistral-Nemo's: byte-level BPE split by a regular expression, 131,072 ids."""
    data = json.loads((_data() / "tekken_240911.json").read_text(encoding="utf-8"))
    num_special = data["config"]["default_num_special_tokens"]
    size = data["config"]["default_vocab_size"] - num_special
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in data["vocab"][:size]]
    ranks = {token: i for i, token in enumerate(tokens)}
    symbols = _byte_symbols()
    text = ["".join(symbols[byte] for byte in token) for token in tokens]
    merges = [
        (text[ranks[token[:cut]]], text[ranks[token[cut:]]])
        for token in tokens
        for cut in sorted(
            (c for c in range(1, len(token)) if token[:c] in ranks and token[c:] in ranks),
            key=lambda c, token=token: (ranks[token[:c]], ranks[token[c:]]),  # type: ignore[misc]
        )
    ]
    specials = ["<unk>", "<s>", "</s>"]
    specials += [f"<SPECIAL_{i}>" for i in range(len(specials), num_special)]
    vocabulary = {name: i for i, name in enumerate(specials)}
    vocabulary |= {token: i + num_special for i, token in enumerate(text)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(data["config"]["pattern"]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    return _fast(made, bos="<s>", eos="</s>", unk="<unk>")


def _byte_symbols() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's encoder)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _fast(tokenizer: Tokenizer, *, bos: str, eos: str, unk: str) -> PreTrainedTokenizerFast:
    start = tokenizer.token_to_id(bos)
    tokenizer.post_processor = post_processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, start)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
    )
