"""Rows of the result files from what an engine gave back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.engine.completion import Completion, Score
from cluster.engine.repetition import ends_in_loop
from cluster.plan import Cell
from optim.models.prompt_ids import prompt_ids


@dataclass(frozen=True)
class Circumstances:
    """Where and how a cell ran; the same for all of its rows."""

    run_id: str
    attempt: str
    worker: str
    node: str
    device: str
    order_in_block: int
    batch_size: int
    warmup: bool


def identity(cell: Cell, prompt_id: str, around: Circumstances) -> dict[str, Any]:
    """The columns that name a row, its cell and its worker."""
    return {
        "run_id": around.run_id,
        "dataset": cell.dataset,
        "prompt_id": prompt_id,
        "shard": cell.shard,
        "cell": cell.key,
        "attempt": around.attempt,
        "worker": around.worker,
        "node": around.node,
        "device": around.device,
    }


def generation_row(
    cell: Cell,
    completion: Completion,
    around: Circumstances,
    base_tokenizer: Any,
    *,
    token_times: bool = False,
    completion_ids: bool = False,
) -> dict[str, Any]:
    """One row of `generations`; a failed prompt has `error` set and null metrics."""
    request = completion.request
    row = identity(cell, request.prompt_id, around) | {
        "seed": cell.seed,
        "finish_reason": completion.finish_reason,
        "error": completion.error,
        "order_in_block": around.order_in_block,
        "batch_size": around.batch_size,
        "started_at": completion.started_at or datetime.now(UTC),
        "warmup": around.warmup,
    }
    if completion.error is not None:
        return row
    text = printable(completion.text)
    row |= _token_counts(completion, text, base_tokenizer) | {
        "queue_s": completion.queue_s,
        "ttft_s": completion.ttft_s,
        "tpot_s": completion.tpot_s,
        "e2e_s": completion.e2e_s,
        "prefill_shared": completion.prefill_shared,
        "num_preemptions": completion.num_preemptions,
        "completion_text": text,
        "ends_in_loop": ends_in_loop(text),
    }
    if completion.kv is not None:
        row |= {
            "kv_used_bytes": completion.kv.used_bytes,
            "kv_committed_bytes": completion.kv.committed_bytes,
            "kv_reserved_bytes": completion.kv.reserved_bytes,
            "kv_used_byte_s": completion.kv_byte_s.used,
            "kv_committed_byte_s": completion.kv_byte_s.committed,
            "kv_reserved_byte_s": completion.kv_byte_s.reserved,
        }
    if token_times:
        row["token_times_s"] = completion.token_times_s
    if completion_ids:
        row["completion_ids"] = completion.ids
    return row


def _token_counts(completion: Completion, text: str, base_tokenizer: Any) -> dict[str, Any]:
    request = completion.request
    end = int(completion.ended_by_token)
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": len(completion.ids),
        "base_prompt_tokens": count_tokens(base_tokenizer, request.prompt, not request.is_chat),
        "base_completion_tokens": count_tokens(base_tokenizer, text, False) + end,
        "base_tokens_spent": completion.base_tokens_spent,
        "prompt_bytes": len(request.prompt.encode()),
        "completion_bytes": len(text.encode()),
        "completion_chars": len(text),
    }


def count_tokens(tokenizer: Any, text: str, special: bool) -> int:
    """Tokens of a text; special ones only where the tokenizer would add them to a prompt."""
    return len(prompt_ids(tokenizer, text, special=special))


def printable(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates, which a decoder may give, become `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def failed_row(cell: Cell, prompt_id: str, error: str, around: Circumstances) -> dict[str, Any]:
    """The row of a prompt that never reached an engine."""
    return identity(cell, prompt_id, around) | {
        "seed": cell.seed,
        "finish_reason": "error",
        "error": error,
        "order_in_block": around.order_in_block,
        "batch_size": around.batch_size,
        "started_at": datetime.now(UTC),
        "warmup": around.warmup,
    }


def likelihood_row(
    cell: Cell, prompt_id: str, candidate: int, score: Score | str, around: Circumstances
) -> dict[str, Any]:
    """One row of `likelihoods`; `score` is the reason where there is none."""
    row = identity(cell, prompt_id, around) | {"candidate": candidate, "error": None}
    if isinstance(score, str):
        return row | {"error": score}
    return row | {
        "num_tokens": score.num_tokens,
        "num_bytes": score.num_bytes,
        "nats": score.nats,
        "is_greedy": score.is_greedy,
    }


def cell_facts(cell: Cell, rows: list[Mapping[str, Any]], around: Circumstances) -> dict[str, Any]:
    """The facts of a cell that follow from its rows: what the part's footer carries."""
    return {
        **cell.model_dump(),
        "rows": len(rows),
        "num_errors": sum(row.get("error") is not None for row in rows),
        "completion_tokens": _total(rows, "completion_tokens"),
        "base_completion_tokens": _total(rows, "base_completion_tokens"),
        "completion_bytes": _total(rows, "completion_bytes"),
        "order_in_block": around.order_in_block,
        "worker": around.worker,
        "node": around.node,
        "device": around.device,
        "attempt": around.attempt,
    }


def _total(rows: list[Mapping[str, Any]], column: str) -> int:
    return sum(row.get(column) or 0 for row in rows)
