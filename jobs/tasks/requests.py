"""The requests of a task as rows of prompts, and where the answer to each request is found.

| lm-eval asks for | row | answer |
|---|---|---|
| `loglikelihood(context, continuation)` | prompt, one of its choices | likelihood of the choice |
| `loglikelihood_rolling(text)` | empty prompt, target | likelihood of the target |
| `generate_until(context, …)` | prompt | completion |

Requests of one document with equal contexts share a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cluster.plan import Generation
from jobs.data.prompts import PromptRow
from jobs.tasks.loading import Sample
from optim.errors import InputError

COMPLETION, TARGET = -2, -1
"""Instead of a choice's index: the answer is the row's completion, or its target's likelihood."""
_MAX_NEW_TOKENS = 256
"""lm-eval's, where a task states none."""
_BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = {"until", "do_sample", "temperature", "top_p", "top_k", *_BUDGETS}
_SAMPLING |= {"repetition_penalty", "suppress_tokens"}
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "min_p": 0}
"""What leaves the sampling as it is."""


class Place(NamedTuple):
    """Where the answer to a request is."""

    prompt_id: str
    candidate: int
    """The index of the choice, `TARGET` or `COMPLETION`."""
    is_empty: bool
    """There is nothing to be scored: nothing is certain, so its log-likelihood is 0."""


@dataclass
class _Row:
    prompt_id: str
    prompt: str
    choices: list[str] = field(default_factory=list)
    target: str | None = None


def task_rows(
    dataset: str, samples: Sequence[Sample], is_chat: bool = False
) -> tuple[list[PromptRow], list[list[Place]]]:
    """The rows of all samples, numbered, and each sample's places in the order of its requests.

    A row's id is its document's place in the task; further rows of a document append a number.
    Text that is no UTF-8 makes an error row.
    """
    rows: list[PromptRow] = []
    places: list[list[Place]] = []
    for sample in samples:
        made, found = _sample_rows(sample)
        for row in made:
            done = _finished(dataset, len(rows), str(sample.doc_id), row, len(made) > 1)
            # An empty prompt is no chat: the start token belongs before it.
            rows.append(replace(done, is_chat=is_chat and bool(done.prompt)))
        places.append(found)
    return rows, places


def _sample_rows(sample: Sample) -> tuple[list[_Row], list[Place]]:
    rows: list[_Row] = []

    def row_of(prompt: str, needs_target: bool = False) -> _Row:
        for row in rows:
            if row.prompt == prompt and not (needs_target and row.target is not None):
                return row
        suffix = f".{len(rows)}" if rows else ""
        rows.append(_Row(f"{sample.doc_id}{suffix}", prompt))
        return rows[-1]

    places = []
    for request in sample.requests:
        if request.request_type == "generate_until":
            row = row_of(request.args[0])
            places.append(Place(row.prompt_id, COMPLETION, False))
        elif request.request_type == "loglikelihood_rolling":
            (text,) = request.args
            row = row_of("", needs_target=True)
            row.target = text
            places.append(Place(row.prompt_id, TARGET, not text))
        else:
            context, continuation = _moved_space(*request.args)
            row = row_of(context)
            row.choices.append(continuation)
            places.append(Place(row.prompt_id, len(row.choices) - 1, not continuation))
    return rows, places


def _moved_space(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of a context belongs to the continuation, as lm-eval has it: a
    vocabulary's words begin with their space."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _finished(dataset: str, number: int, doc_id: str, row: _Row, is_grouped: bool) -> PromptRow:
    texts = [row.prompt, row.target or "", *row.choices]
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError as error:
        return PromptRow(dataset, number, row.prompt_id, error=f"document {doc_id}: {error}")
    return PromptRow(
        dataset=dataset,
        row=number,
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        target=row.target,
        choices=row.choices or None,
        cluster=doc_id if is_grouped else None,
    )


def task_generation(name: str, samples: Sequence[Sample], trial: Generation) -> Generation | None:
    """How the task's completions are sampled; None where it wants none.

    By the task's `generation_kwargs` alone, greedy where they do not ask for a temperature. Raises
    InputError for settings that the engine does not have, and where documents differ in them.
    """
    wanted = [r.args[1] for s in samples for r in s.requests if r.request_type == "generate_until"]
    if not wanted:
        return None
    first = wanted[0]
    if any(other != first for other in wanted[1:]):
        raise InputError(
            "its documents differ in how they are generated", source=name, field="task",
            mend="Take a task with one `generation_kwargs`",
        )  # fmt: skip
    unknown = sorted(
        key for key in set(first) - _SAMPLING if first[key] != _NEUTRAL.get(key, first)
    )
    if unknown:
        raise InputError(
            f"its `generation_kwargs` ask for {', '.join(unknown)}, which the engine does not have",
            source=name,
            field="task",
            mend="Copy the task into a folder without them, and name it in `include_path`",
        )
    until = first.get("until") or []
    budget = next((first[key] for key in _BUDGETS if first.get(key) is not None), _MAX_NEW_TOKENS)
    is_greedy = first.get("do_sample") is False
    return Generation(
        max_new_tokens=int(budget),
        temperature=0.0 if is_greedy else float(first.get("temperature") or 0.0),
        top_p=float(first.get("top_p") or 1.0),
        top_k=int(first.get("top_k") or 0),
        repetition_penalty=float(first.get("repetition_penalty") or 1.0),
        suppress_tokens=tuple(sorted({int(t) for t in first.get("suppress_tokens") or ()})),
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        token_times=trial.token_times,
        completion_ids=trial.completion_ids,
    )
