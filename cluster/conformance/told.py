"""`Told`: the engine with tokens that are given, for its logits."""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from cluster.engine.sequence import Sequence
from optim.errors import SequenceError


class Text(NamedTuple):
    """Token ids of a prompt, and of what follows it."""

    prompt: list[int]
    completion: list[int]


def texts(sizes: Sequences[tuple[int, int]], ids: Sequences[int], seed: int) -> list[Text]:
    """Random texts of these (prompt, completion) lengths out of these ids."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in sizes:
        places = torch.randint(len(ids), (sum(size),), generator=generator).tolist()
        chosen = [ids[place] for place in places]
        made.append(Text(chosen[: size[0]], chosen[size[0] :]))
    return made


class Told(Engine):
    """An engine that is told its tokens, and keeps what it would have chosen them from."""

    def logits(self, given: list[Text]) -> list[Tensor]:
        """What predicts each token of each completion, float32 [T, V] on the CPU.

        Raises SequenceError for a text that fails.
        """
        self._given = given
        self._chosen_from: list[list[Tensor]] = [[] for _ in given]
        self._ends = frozenset()
        requests = []
        for number, text in enumerate(given):
            # Counted in base tokens, of which a token may stand for several.
            budget = sum(self._base_lengths[token] for token in text.completion)
            requests.append(Request(str(number), "", SamplingParams(max_new_tokens=budget)))
        for completion in self.generate(requests):
            if completion.error is not None:
                raise SequenceError(completion.error)
        return [torch.stack(rows) for rows in self._chosen_from]

    def encode(self, request: Request) -> list[int]:
        return self._given[int(request.prompt_id)].prompt

    def decode(self, ids: list[int]) -> str:
        return ""

    def choose(self, logits_BV: Tensor, sequences: list[Sequence]) -> list[int]:
        told = []
        for row, sequence in zip(logits_BV, sequences, strict=True):
            number, place = int(sequence.request.prompt_id), len(sequence.result.ids)
            told.append(self._given[number].completion[place])
            # One that was preempted comes here again.
            self._chosen_from[number][place:] = [row.float().cpu()]
        return told


@dataclass(frozen=True)
class Gap:
    """How far logits are apart, in parts of their own spread over the vocabulary."""

    steps: list[Tensor]
    """Per text and generated token, [T] each; infinite where logits are not finite."""

    @classmethod
    def between(cls, found: list[Tensor], right: list[Tensor]) -> Gap:
        steps = []
        for a, b in zip(found, right, strict=True):
            spread = (b - b.mean(-1, keepdim=True)).norm(dim=-1)
            steps.append(((a - b).norm(dim=-1) / spread).nan_to_num(nan=torch.inf))
        return cls(steps)

    @property
    def largest(self) -> float:
        return max(float(step.max()) for step in self.steps)

    @property
    def typical(self) -> float:
        """The largest of any text's median: single near ties do not make it large."""
        return max(float(step.median()) for step in self.steps)

    def first_beyond(self, allowed: float) -> tuple[int, int] | None:
        """(text, generated token) of the first that is larger."""
        for number, step in enumerate(self.steps):
            wrong = (~(step <= allowed)).nonzero()
            if len(wrong):
                return number, int(wrong[0])
        return None
