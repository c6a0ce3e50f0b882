"""A tokenizer of transformers with an adapted vocabulary, as a layer over an unchanged base.

Importing this module lets `AutoTokenizer.from_pretrained(folder)` give it. The folder holds the
base's tokenizer.json, its tokenizer_config.json with another class, and `patches.json`; without the
import, transformers refuses the folder by name rather than reading the base's ids as adapted ones.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, BatchEncoding, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import encode_marked_chat

from optim.adaptivocab.tokenizer.patch_fit import require_fit, used_ids
from optim.adaptivocab.tokenizer.patched_encoding import PatchedEncoding
from optim.adaptivocab.tokenizer.segmentation import Method, Patches, Segmenter
from optim.errors import InputError

PATCHES = "patches.json"
_REFUSAL = "an adapted vocabulary: `import optim.adaptivocab.patched` before it is loaded"
"""Stands where transformers wants a side: it shows what else it finds there."""
_NOWHERE = "`import optim.adaptivocab.patched` first--patched.PatchedTokenizer"
"""Where transformers is told that the class is: shown in its refusal, and no repository's name."""


class _BaseIds:
    """What transformers' encoder of sanitised chats asks a tokenizer for, in base ids."""

    def __init__(self, patched: PatchedTokenizer) -> None:
        self.added_tokens_encoder = patched.added_tokens_encoder
        self._patched: Any = patched
        self._plain: Any = super(PatchedTokenizer, patched)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        made = self._plain._encode_plus(text, add_special_tokens=add_special_tokens, verbose=False)
        return list(made["input_ids"])

    def _encode_without_added_tokens(self, text: str) -> list[int]:
        return list(self._plain._encode_without_added_tokens(text))

    def convert_tokens_to_ids(self, token: str) -> int | None:
        index: int | None = self._patched.backend_tokenizer.token_to_id(token)
        return index


class PatchedTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
    """A base tokenizer whose ids are segmented anew, with the interface of any fast tokenizer.

    `decode` of any ids is the base's of `segmenter.expand(ids)`. Special and other added tokens are
    barriers: no new token spans one. Truncation and padding count adapted ids. A new token's string
    is its base tokens' strings joined; where that is another token's, or cannot be printed, its id
    in ⟨⟩ follows. Words that are split already are not taken (NotImplementedError), since new
    tokens may span them.

    Raises InputError (with the file and the field) where the patches do not fit the base, and where
    a token is added that would take an id which they use.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "patches_file": PATCHES}  # noqa: RUF012
    patches: Patches | None = None
    """What it changes; None only while transformers sets up the base."""
    segmenter: Segmenter

    def __init__(
        self,
        *args: Any,
        patches: Patches | None = None,
        patches_file: str | None = None,
        patched_truncation_side: str = "right",
        **kwargs: Any,
    ) -> None:
        if kwargs.get("truncation_side", _REFUSAL) == _REFUSAL:
            kwargs["truncation_side"] = patched_truncation_side
        kwargs.pop("auto_map", None)
        super().__init__(*args, **kwargs)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        source = patches_file or self.name_or_path or None
        if patches is None:
            if patches_file is None:
                raise InputError(f"there is no {PATCHES}", source=source, field="patches_file")
            patches = Patches.read(patches_file)
        try:
            require_fit(patches, self._tokenizer, self._barriers())
            self._patch(patches)
        except InputError as error:
            raise InputError(
                error.problem, source=source, field=error.field, mend=error.mend
            ) from error

    @classmethod
    def of(
        cls,
        base: PreTrainedTokenizerFast,
        *,
        removed: Mapping[int, tuple[int, ...]],
        new: Mapping[int, tuple[int, ...]],
        method: Method = "dp",
    ) -> PatchedTokenizer:
        """The base, which stays as it is, with patches.

        Raises InputError where the base is not a plain fast tokenizer or the patches do not fit it.
        """
        plain = PreTrainedTokenizerFast
        own = [
            n for n in ("_encode_plus", "_decode") if getattr(type(base), n, 0) != getattr(plain, n)
        ]
        if own:
            raise InputError(
                f"{type(base).__name__} is no plain fast tokenizer: its {own[0]} is its own",
                field="base",
                mend="Patch a tokenizer that is a tokenizer.json alone",
            )
        patches = Patches.checked(method=method, removed=dict(removed), new=dict(new))
        backend = Tokenizer.from_str(base.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        with TemporaryDirectory() as folder:
            base.save_pretrained(folder)
            backend.save(str(Path(folder) / "tokenizer.json"))
            made = cls.from_pretrained(folder, patches=patches)
        made.name_or_path = made.init_kwargs["name_or_path"] = base.name_or_path
        return made  # type: ignore[no-any-return]

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> Any:
        return kwargs  # tokenizer.json is read as it is, not taken apart and built again

    def base_length(self, token: int) -> int:
        """Of how many kept base tokens an adapted id stands."""
        return self.segmenter.base_length(token)

    def encode_prompt(self, text: str, back_off: int | None = None) -> list[int]:
        """Ids of a text that a completion continues, its last `back_off` base tokens unmerged.

        What follows a prompt may belong to a new token with its end, which a model saw merged in
        training. By default as many base tokens stay as a new token could still extend: the longest
        one's length less 1. Special tokens are added as `encode` does. Raises InputError where
        `back_off` is negative.
        """
        back_off = self.segmenter.longest - 1 if back_off is None else back_off
        if back_off < 0:
            raise InputError(f"must be 0 or more, got {back_off}", field="back_off")
        encoding = super()._encode_plus(text, verbose=False).encodings[0]
        ids = self.segmenter.decompose(encoding.ids)
        num_after = 0  # special tokens that are put after the text
        while num_after < len(encoding) and encoding.special_tokens_mask[-1 - num_after]:
            num_after += 1
        cut = max(0, len(ids) - num_after - back_off)
        return self.segmenter.cover(ids[:cut]) + ids[cut:]

    @property
    def vocab_size(self) -> int:
        return int(super().vocab_size) + self._num_beyond

    def __len__(self) -> int:
        return int(super().__len__()) + self._num_beyond

    def get_vocab(self) -> dict[str, int]:
        """Token -> id. A removed token whose id no new one uses is still there: it is decoded."""
        ids: dict[str, int] = super().get_vocab()
        if self.patches is None:
            return ids
        kept = {name: token for name, token in ids.items() if token not in self.patches.new}
        return {**kept, **self._new_ids}

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._convert_id_to_token(k) for k in map(int, ids) if k not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        parts: list[str] = []
        for token in tokens:
            new = self._new_ids.get(token)
            ids = () if new is None else self.segmenter.expand([new])
            parts += [token] if new is None else map(self._tokenizer.id_to_token, ids)
        return str(super().convert_tokens_to_string(parts))

    def _convert_id_to_token(self, index: int) -> str | None:
        name = self._new_names.get(int(index))
        return self._tokenizer.id_to_token(int(index)) if name is None else name

    def _convert_token_to_id_with_added_voc(self, token: str) -> Any:
        new = self._new_ids.get(token)
        if new is not None:
            return new
        index = super()._convert_token_to_id_with_added_voc(token)
        return self.unk_token_id if index in self._new_names else index

    def _encode_without_added_tokens(self, text: str) -> list[int]:
        return self.segmenter.segment(super()._encode_without_added_tokens(text))

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: Any = "do_not_pad",
        truncation_strategy: Any = "do_not_truncate",
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_overflowing_tokens: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        sanitize_control_tokens: bool = False,
        **columns: Any,
    ) -> BatchEncoding:
        if is_split_into_words:
            raise NotImplementedError(
                "an adapted vocabulary's tokens may span words: give it whole texts, not "
                "is_split_into_words=True"
            )
        is_batched = isinstance(text, list | tuple)
        fit = {"max_length": max_length, "padding_side": padding_side}
        fit |= {"pad_to_multiple_of": pad_to_multiple_of}
        truncation, padding = _value(truncation_strategy), _value(padding_strategy)
        if sanitize_control_tokens:
            if add_special_tokens and self._tokenizer.num_special_tokens_to_add(False):
                raise NotImplementedError(
                    "`sanitize_control_tokens=True` needs a template that writes special tokens"
                )
            chats = [
                self.segmenter.segment(encode_marked_chat(_BaseIds(self), chat))
                for chat in (text if is_batched else [text])
            ]
            if truncation != "do_not_truncate" and max_length is not None:
                right = self.truncation_side == "right"
                chats = [c[:max_length] if right else c[len(c) - max_length :] for c in chats]
            return self.pad(
                {"input_ids": chats if is_batched or return_tensors else chats[0]},
                padding=padding,
                return_attention_mask=return_attention_mask,
                return_tensors=return_tensors,
                **fit,
            )
        plain = super()._encode_plus(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            split_special_tokens=split_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        encodings = [self._patched(encoding) for encoding in plain.encodings]
        if truncation != "do_not_truncate" and max_length is not None:
            for encoding in encodings:
                encoding.truncate(
                    truncation, max_length, stride, self.truncation_side, return_overflowing_tokens
                )
        if padding != "do_not_pad":
            length = max_length if padding == "max_length" else None
            length = max(map(len, encodings), default=0) if length is None else length
            length += -length % (pad_to_multiple_of or 1)
            for encoding in encodings:
                encoding.pad(length, padding_side or self.padding_side)
        columns |= {
            "return_token_type_ids": return_token_type_ids,
            "return_attention_mask": return_attention_mask,
            "return_overflowing_tokens": return_overflowing_tokens,
        }
        made: dict[str, list[Any]] = defaultdict(list)
        shown: list[PatchedEncoding] = []
        for number, encoding in enumerate(encodings):
            fields, parts = self._convert_encoding(encoding, **columns)
            for name, values in fields.items():
                made[name] += values
            if return_overflowing_tokens:
                made["overflow_to_sample_mapping"] += [number] * len(parts)
            shown += parts
        for ids in made["input_ids"]:
            self._eventual_warn_about_too_long_sequence(ids, max_length, verbose)
        if is_batched or return_tensors is not None or return_overflowing_tokens:
            return BatchEncoding(dict(made), shown, tensor_type=return_tensors)
        alone = {k: v[0] if v and isinstance(v[0], list) else v for k, v in made.items()}
        return BatchEncoding(alone, shown)

    def _patched(self, encoding: Any) -> PatchedEncoding:
        """Each of the texts of an encoding is segmented by itself."""
        if encoding.n_sequences == 1:
            ids = self.segmenter.segment(encoding.ids)
        else:
            ids, sequences = [], encoding.sequence_ids
            edges = [k for k in range(1, len(sequences)) if sequences[k] != sequences[k - 1]]
            for start, stop in zip([0, *edges], [*edges, len(sequences)], strict=True):
                ids += self.segmenter.segment(encoding.ids[start:stop])
        pad = (self.pad_token_id, self.pad_token_type_id, self.pad_token)
        return PatchedEncoding(encoding, ids, self.segmenter, self._convert_id_to_token, pad)

    def _decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> str:
        if isinstance(token_ids, dict | BatchEncoding):
            token_ids = token_ids["input_ids"]
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return str(super()._decode(self.segmenter.expand(token_ids), *args, **kwargs))

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        if self.patches is None:
            return int(super()._add_tokens(new_tokens, special_tokens=special_tokens))
        used = used_ids(self.patches)
        for token in map(str, new_tokens):
            index = self._tokenizer.token_to_id(token)
            if index in used or (index is None and self._num_beyond):
                raise InputError(
                    f"{token!r} would take an id that the adapted vocabulary uses",
                    field="added token",
                    mend="Add it to the base tokenizer and prepare the vocabulary again",
                )
        added = super()._add_tokens(new_tokens, special_tokens=special_tokens)
        self._patch(self.patches)
        return int(added)

    def _save_pretrained(
        self, save_directory: Any, file_names: Any, *args: Any, **kwargs: Any
    ) -> Any:
        assert self.patches is not None
        files = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        prefix = kwargs.get("filename_prefix")
        file = Path(save_directory) / (f"{prefix}-{PATCHES}" if prefix else PATCHES)
        file.write_text(self.patches.to_json(), encoding="utf-8")
        config_file = Path(file_names[0])
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["patched_truncation_side"] = self.truncation_side
        config["truncation_side"] = _REFUSAL
        # Without a map transformers takes the class that it knows for the model's type, whatever
        # this one's name; code is never looked for, since the class of that name is registered.
        config["auto_map"] = {"AutoTokenizer": [None, _NOWHERE]}
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        config_file.write_text(text + "\n", encoding="utf-8")
        return (*files, str(file))

    def _barriers(self) -> set[int]:
        added = {*self.added_tokens_decoder, *self.all_special_ids}
        return added | {*self._tokenizer.encode("", "").ids, *self._tokenizer.encode("").ids}

    def _patch(self, patches: Patches) -> None:
        backend = self._tokenizer
        segmenter = Segmenter(patches.new, patches.removed, patches.method, self._barriers())
        names: dict[int, str] = {}
        ids: dict[str, int] = {}
        for token in sorted(patches.new):
            name = "".join(map(backend.id_to_token, patches.new[token]))
            other = backend.token_to_id(name)
            if (other is not None and other not in patches.new) or not name.isprintable():
                name += f"⟨{token}⟩"
            while name in ids:
                name += f"⟨{token}⟩"
            names[token], ids[name] = name, token
        self.segmenter, self._new_names, self._new_ids = segmenter, names, ids
        self._num_beyond = sum(backend.id_to_token(token) is None for token in patches.new)
        self.patches = patches

    _new_names: Mapping[int, str] = {}
    _new_ids: Mapping[str, int] = {}
    _num_beyond = 0


def _value(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))


class _Key(PreTrainedConfig):  # type: ignore[misc]
    """Nothing but what a registration of a tokenizer's class is filed under."""

    model_type = "adaptivocab-tokenizer"


AutoTokenizer.register(_Key, PatchedTokenizer, exist_ok=True)
