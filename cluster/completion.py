"""What an engine is asked for and what it gives back: requests, completions, scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cluster.sampling import SamplingParams
from optim.cache import KVAccounts

GREEDY = SamplingParams()
NO_KV = KVAccounts(0, 0, 0)


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


@dataclass
class EngineStats:
    """What an engine spent since `reset_stats`: seconds, steps, and KV bytes over time."""

    num_steps: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    kv_peak: KVAccounts = NO_KV
    kv_used_byte_s: float = 0.0
    kv_committed_byte_s: float = 0.0
