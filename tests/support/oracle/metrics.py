"""What each metric is: of rows, cells or targets, what it divides by, and how it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    name: str
    of: Literal["row", "cell", "target"]
    amount: str
    per: str | None = None
    """What amounts are divided by, total over total; None where the effect is of totals alone."""
    better: Literal["lower", "higher", "neither"] = "lower"
    margin: float = 0.02
    is_timed: bool = False
    """Rows of a shard share its noise, and rows of a cold engine are left out."""
    is_length: bool = False
    """A longer answer has more of it."""
    is_share: bool = False
    """Of rows: its effect is a difference."""
    is_failures: bool = False
    """Of all rows, those that failed among them, whatever their data sets."""

    @property
    def is_memory(self) -> bool:
        return self.name.startswith("kv_")

    @property
    def is_by_shard(self) -> bool:
        """Whether what is swapped is the shard; else the prompt, or its group."""
        return self.is_timed or self.of == "cell"

    @property
    def has_geometric_mean(self) -> bool:
        """Whether the typical prompt's change stands beside the ratio of totals."""
        return self.of == "row" and self.per is None and not self.is_share


def _row(name: str, margin: float, better: Literal["lower", "neither"] = "neither") -> Metric:
    return Metric(name, "row", name, None, better, margin, is_length=name != "prompt_tokens")


METRICS = {
    each.name: each
    for each in (
        _row("prompt_tokens", 0.01, "lower"),
        _row("completion_tokens", 0.02),
        _row("total_tokens", 0.02),
        Metric("tokens_per_base_token", "row", "completion_tokens", "base_completion_tokens",
               margin=0.01),
        _row("base_completion_tokens", 0.02),
        _row("completion_bytes", 0.02),
        Metric("ttft_s", "row", "ttft_s", margin=0.05, is_timed=True),
        Metric("tpot_s", "row", "tpot_s", margin=0.03, is_timed=True),
        Metric("e2e_s", "row", "e2e_s", margin=0.03, is_timed=True, is_length=True),
        Metric("e2e_s_per_byte", "row", "e2e_s", "completion_bytes", margin=0.03, is_timed=True),
        Metric("completion_bytes_per_s", "cell", "completion_bytes", "wall_s", "higher", 0.03,
               is_timed=True),
        Metric("base_tokens_per_s", "cell", "base_completion_tokens", "wall_s", "higher", 0.03,
               is_timed=True),
        Metric("device_s_per_byte", "cell", "wall_s", "completion_bytes", margin=0.03,
               is_timed=True),
        Metric("kv_committed_peak_bytes", "cell", "kv_committed_peak_bytes", is_length=True),
        Metric("kv_committed_mean_bytes", "cell", "kv_committed_byte_s", "wall_s", is_timed=True,
               is_length=True),
        Metric("kv_byte_s_per_byte", "cell", "kv_committed_byte_s", "completion_bytes",
               margin=0.03, is_timed=True, is_length=True),
        Metric("ends_in_loop", "row", "ends_in_loop", margin=0.01, is_share=True),
        Metric("failed_share", "row", "error", margin=0.01, is_share=True, is_failures=True),
        Metric("bits_per_byte", "target", "bits_per_byte", margin=0.01),
    )
}  # fmt: skip

ALWAYS_PRIMARY = "failed_share"
PRIMARY = ("completion_tokens", "e2e_s_per_byte", "kv_committed_peak_bytes", "bits_per_byte")
