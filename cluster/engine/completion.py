"""What an engine is asked for and what it gives back: requests, completions, scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from cluster.engine.sampling import SamplingParams
from optim.cache.prefix import Sharing
from optim.cache.slot_cache import KVAccounts

GREEDY = SamplingParams()
NO_KV = KVAccounts(0, 0, 0)


class ByteSeconds(NamedTuple):
    """Time integrals of `KVAccounts`."""

    used: float = 0.0
    committed: float = 0.0
    reserved: float = 0.0


NO_BYTE_SECONDS = ByteSeconds()


def add_byte_seconds(total: ByteSeconds, held: KVAccounts, spent_s: float) -> ByteSeconds:
    """`total` and what was held for so long."""
    return ByteSeconds(*(t + bytes_ * spent_s for t, bytes_ in zip(total, held, strict=True)))


@dataclass(frozen=True)
class Request:
    """One completion that is asked for."""

    prompt_id: str
    prompt: str
    params: SamplingParams = GREEDY
    seed: int = 0
    is_chat: bool = False
    """Rendered by a chat template: the text holds its special tokens already."""


@dataclass
class Completion:
    """What became of a request: facts, with times in seconds."""

    request: Request
    prompt_tokens: int | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "error"
    """stop (end token or stop string), length (budget or context), error."""
    ended_by_token: bool = False
    base_tokens_spent: int = 0
    error: str | None = None
    started_at: datetime | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    e2e_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)
    """Each token's time after the start of the prefill."""
    kv: KVAccounts | None = None
    """Bytes held for the sequence, each at its peak."""
    kv_byte_s: ByteSeconds = NO_BYTE_SECONDS
    """The same over time, from its start to its last token."""
    prefill_shared: Sharing | None = None
    """How it got a prompt that another request had prefilled; None where it prefilled its own."""
    num_preemptions: int = 0
    """Times that it was begun again because memory was short; its clock ran on."""

    @property
    def tpot_s(self) -> float | None:
        """(e2e - ttft) / (n - 1) (vLLM, MLPerf); None below two tokens."""
        if self.e2e_s is None or self.ttft_s is None or len(self.ids) < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (len(self.ids) - 1)


@dataclass(frozen=True)
class Score:
    """The likelihood of one continuation."""

    nats: float
    """-ln p(continuation | context)."""
    num_tokens: int
    num_bytes: int
    """UTF-8 bytes of the continuation."""
    is_greedy: bool
    """Every token was the likeliest one: greedy under the segmentation that was scored, and no
    other."""


@dataclass
class EngineStats:
    """What an engine spent since `reset_stats`: seconds, steps, and KV bytes over time."""

    num_steps: int = 0
    num_slot_steps: int = 0
    """Slots that held a sequence, summed over the decode steps."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    kv_peak: KVAccounts = NO_KV
    kv_byte_s: ByteSeconds = NO_BYTE_SECONDS
    kv_audit: tuple[int, int] | None = None
    """(by the books, by the system) bytes at the end of the last call, where a cache can tell."""
    audit_s: float = 0.0
    """Spent on that; part of no other time."""
