"""Where a difference in tokens comes from: another vocabulary, or another text.

R is the tokens that a completion's text has when the baseline's tokenizer encodes it, T those that
were generated. Then log(T / T') = log(T/R / (T'/R')) + log(R / R') exactly: the encoding effect
(same text, other vocabulary) and the length effect (other text), ' being the reference. Of prompts
the text is the same, so all of their difference is encoding. Source: design of this project; R is
used rather than T for the baseline too, because sampled text is often not tokenised canonically.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import duckdb
import numpy as np

from jobs.analysis.comparison import Comparison
from jobs.stats.permutation.effect import Effect

CENSORED_ABOVE = 0.1
"""Share of rows that end by the budget from which the length effect is a bound, not a value."""
_MOST_TEXTS = 20_000


@dataclass(frozen=True)
class Divergence:
    """Where texts of equal prompt and seed part, in code points; over those that differ."""

    num_compared: int
    num_identical: int
    num_read: int
    """Differing texts that were read for the positions; a fixed draw where there are very many."""
    median_chars: float | None
    quartile_chars: tuple[float, float] | None

    @property
    def identical_share(self) -> float | None:
        return self.num_identical / self.num_compared if self.num_compared else None


@dataclass(frozen=True)
class TokenAccount:
    """The tokens of a configuration against its reference's."""

    prompt: Effect | None
    total: Effect | None
    encoding: Effect | None
    """Same text, other vocabulary."""
    length: Effect | None
    """Other text, counted by one tokenizer."""
    encoding_share: float | None
    """Of the total on the log scale; None where the total is nothing."""
    length_share: float | None
    is_censored: bool
    """Many completions end by the budget, so that lengths are cut short."""
    length_stops: tuple[float | None, float | None]
    """Share of completions that the budget ended: the reference's, and the configuration's."""
    divergence: Divergence


def token_account(connection: duckdb.DuckDBPyConnection, comparison: Comparison) -> TokenAccount:
    """The account of a comparison whose effects are known; reads finish reasons and texts."""
    total = comparison.effect("completion_tokens")
    encoding = comparison.effect("tokens_per_base_token")
    length = comparison.effect("base_completion_tokens")
    stops = _length_stops(connection, comparison)
    shares = _shares(total, encoding, length)
    return TokenAccount(
        prompt=comparison.effect("prompt_tokens"),
        total=total,
        encoding=encoding,
        length=length,
        encoding_share=shares[0],
        length_share=shares[1],
        is_censored=max((s for s in stops if s is not None), default=0.0) > CENSORED_ABOVE,
        length_stops=stops,
        divergence=_divergence(connection, comparison),
    )


def _shares(*effects: Effect | None) -> tuple[float | None, float | None]:
    logs = []
    for effect in effects:
        if effect is None or effect.estimate is None or effect.estimate <= -1:
            return None, None
        logs.append(math.log1p(effect.estimate))
    total, encoding, length = logs
    return (encoding / total, length / total) if total else (None, None)


def _length_stops(
    connection: duckdb.DuckDBPyConnection, comparison: Comparison
) -> tuple[float | None, float | None]:
    found = dict(
        connection.execute(
            """
            SELECT configuration, avg(CAST(finish_reason = 'length' AS INT)) FROM generations
            WHERE configuration IN (?, ?) AND error IS NULL GROUP BY configuration
            """,
            [comparison.vs, comparison.configuration],
        ).fetchall()
    )
    return found.get(comparison.vs), found.get(comparison.configuration)


def _divergence(connection: duckdb.DuckDBPyConnection, comparison: Comparison) -> Divergence:
    texts = comparison.texts
    rows = connection.execute(
        """
        SELECT r.completion_text, o.completion_text
        FROM generations o JOIN generations r USING (dataset, prompt_id, seed)
        WHERE o.configuration = ? AND r.configuration = ? AND o.error IS NULL AND r.error IS NULL
            AND o.completion_text IS DISTINCT FROM r.completion_text
        ORDER BY hash(o.dataset, o.prompt_id, o.seed), o.dataset, o.prompt_id, o.seed LIMIT ?
        """,
        [comparison.configuration, comparison.vs, _MOST_TEXTS],
    ).fetchall()
    at = np.array([first_difference(a or "", b or "") for a, b in rows], dtype=np.float64)
    quartiles = tuple(float(q) for q in np.quantile(at, [0.25, 0.75])) if len(at) else None
    return Divergence(
        num_compared=texts.compared,
        num_identical=texts.compared - texts.differing,
        num_read=len(rows),
        median_chars=float(np.median(at)) if len(at) else None,
        quartile_chars=quartiles,  # type: ignore[arg-type]
    )


def first_difference(a: str, b: str) -> int:
    """Code points that two texts have in common from the start."""
    return next(
        (at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
