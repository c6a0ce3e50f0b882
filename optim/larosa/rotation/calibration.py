"""Calibration text as token sequences, and their passage through a model layer by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from optim.errors import InputError
from optim.larosa.architecture import architecture_of, layers_of
from optim.model import LanguageModel


@dataclass(frozen=True)
class Sequences:
    """Equally long sequences of tokens: some to calibrate with, the others held out."""

    calibration_NT: Tensor
    held_out_NT: Tensor

    @property
    def sha256(self) -> str:
        """Of all token ids, in order."""
        both = torch.cat([self.calibration_NT, self.held_out_NT])
        return hashlib.sha256(both.numpy().tobytes()).hexdigest()


def cut(
    lm: LanguageModel, corpus: Iterable[str], num_sequences: int, length: int, num_held_out: int
) -> Sequences:
    """The corpus as one stream of tokens, an end token between texts, cut into sequences.

    Where the text is shorter than what is asked for, what there is serves, in the same proportion;
    InputError where that is fewer tokens than twice the model's width.
    """
    width = int(lm.model.config.get_text_config(decoder=True).hidden_size)
    length = min(length, lm.context_length or length)
    wanted = (num_sequences + num_held_out) * length
    ids = _stream(lm, corpus, wanted)
    needed = max(2 * width, 256)
    total = len(ids) // length
    if total < 2:
        length = len(ids) // 2
        total = 2
    if length * (total - 1) < needed:
        _refuse(len(ids), wanted, width, needed)
    held = max(1, round(total * num_held_out / (num_sequences + num_held_out)))
    rows = torch.tensor(ids[: total * length]).view(total, length)
    return Sequences(rows[: total - held], rows[total - held :])


def _refuse(num_tokens: int, wanted: int, width: int, needed: int) -> NoReturn:
    if num_tokens < wanted:
        raise InputError(
            f"the calibration text is too short: it has {num_tokens:,} tokens, and a model of "
            f"width {width:,} needs {2 * needed:,} or more ({wanted:,} are asked for)",
            field="--data",
            mend=f"Give about {2 * needed * 5 // 1000 + 1:,} kB or more; --data may be repeated, "
            "and --data demo/training, the Python documentation, would do",
        )
    raise InputError(
        f"{wanted:,} tokens are too few to calibrate a model of width {width:,} with: it needs "
        f"{needed:,} and as many that are held out as one sequence has",
        field="--sequences",
        mend="Ask for more sequences, or for longer ones (--tokens)",
    )


def _stream(lm: LanguageModel, corpus: Iterable[str], wanted: int) -> list[int]:
    end = min(lm.end_ids, default=None)
    ids: list[int] = []
    for text in corpus:
        ids += lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if end is not None:
            ids.append(end)
        if len(ids) >= wanted:
            break
    return ids[:wanted]


class _Stopped(Exception):
    """The first layer was reached, which is all that was wanted."""


class LayerByLayer:
    """Runs sequences through a model's layers one at a time, all sequences through one layer.

    Holds one hidden state per sequence and what the model passes to each layer.
    """

    def __init__(self, lm: LanguageModel, sequences_NT: Tensor) -> None:
        self.layers = layers_of(lm.model, architecture_of(lm.model))
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.hidden: list[Tensor] = []
        with torch.inference_mode():
            self._record(lm, sequences_NT[:1])
            for row_T in sequences_NT:
                self.hidden.append(self._entrance(lm, row_T[None]))

    def _record(self, lm: LanguageModel, row_1T: Tensor) -> None:
        """What each layer is called with beside the hidden state: equal for equal lengths."""

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._arguments.append((args[1:], kwargs))

        with _hooked(self.layers, hook):
            lm.model(input_ids=row_1T.to(lm.device), use_cache=False, logits_to_keep=1)

    def _entrance(self, lm: LanguageModel, row_1T: Tensor) -> Tensor:
        found: list[Tensor] = []

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0])
            raise _Stopped

        with _hooked(self.layers[:1], hook):
            try:
                lm.model(input_ids=row_1T.to(lm.device), use_cache=False, logits_to_keep=1)
            except _Stopped:
                return found[0]
        raise AssertionError("the model has no layers")

    def advance(self, index: int) -> None:
        """Pass all hidden states through layer `index`."""
        args, kwargs = self._arguments[index]
        with torch.inference_mode():
            for place, hidden in enumerate(self.hidden):
                out = self.layers[index](hidden, *args, **kwargs)
                self.hidden[place] = out[0] if isinstance(out, tuple) else out


class _hooked:
    """Forward pre-hooks on some modules for as long as the context lasts."""

    def __init__(self, modules: Iterable[nn.Module], hook: Callable[..., None]) -> None:
        self._modules, self._hook = modules, hook

    def __enter__(self) -> None:
        self._handles = [
            m.register_forward_pre_hook(self._hook, with_kwargs=True) for m in self._modules
        ]

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def divergence(dense: list[Tensor], sparse: Callable[[int], Tensor]) -> float:
    """Mean KL(dense || sparse) per token, nats; `dense` holds log-probabilities [T, V]."""
    total, count = 0.0, 0
    for index, log_p_TV in enumerate(dense):
        log_q_TV = torch.log_softmax(sparse(index).float(), -1)
        total += float((log_p_TV.exp() * (log_p_TV - log_q_TV)).sum())
        count += log_p_TV.shape[0]
    return total / count
