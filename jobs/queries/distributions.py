"""Distributions by their quantiles, and KV memory over a trial's time, reduced by DuckDB."""

from __future__ import annotations

from typing import Any

import duckdb

POINTS = tuple(i / 100 for i in range(101))
"""Quantiles that are kept of every distribution, the least and the greatest value included."""
NUM_BINS = 200

_DONE = "generations WHERE error IS NULL"
_WARM = f"{_DONE} AND NOT coalesce(warmup, false)"
_CELLS = "cells WHERE kind = 'generations' AND coalesce(num_errors, 0) < rows"
# Where a ratio is a row's value, its mean is the ratio of totals, as everywhere.
_MEANS = {"e2e_s_per_byte": "sum(e2e_s) / nullif(sum(completion_bytes), 0)"}
_DISTRIBUTIONS = {
    "prompt_tokens": ("prompt_tokens", _DONE),
    "completion_tokens": ("completion_tokens", _DONE),
    "ttft_s": ("ttft_s", _WARM),
    "tpot_s": ("tpot_s", _WARM),
    "e2e_s": ("e2e_s", _WARM),
    "e2e_s_per_byte": ("e2e_s / nullif(completion_bytes, 0)", _WARM),
    "kv_committed_peak_bytes": ("kv_committed_peak_bytes", _CELLS),
}


def distributions(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    """Metric -> configuration -> n, mean, and the `POINTS` quantiles of rows (of cells for memory).

    Interpolated as `quantile_cont` does (Hyndman and Fan's type 7). One metric is in memory at a
    time.
    """
    return {
        name: {
            configuration: {"n": size, "mean": mean, "quantiles": quantiles}
            for configuration, size, mean, quantiles in connection.execute(
                f"""
                SELECT configuration, count({value}), {_MEANS.get(name, f"avg({value})")},
                    quantile_cont(CAST({value} AS DOUBLE), {list(POINTS)})
                FROM {source} GROUP BY configuration
                """
            ).fetchall()
            if size
        }
        for name, (value, source) in _DISTRIBUTIONS.items()
    }


def memory_over_time(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """KV memory of cells by when they began, means and peaks, in at most `NUM_BINS` bins.

    `bin_s` is a bin's width; a configuration's series has t_s (the bin's middle, from the first
    cell's start on), committed_mean, committed_peak, used_mean and used_peak, in bytes; a number
    that cells lack is None.
    """
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE timeline AS
        SELECT *, began - min(began) OVER () AS t FROM (
            SELECT *, epoch(CAST(started_at AS TIMESTAMPTZ)) AS began FROM {_CELLS}
                AND started_at IS NOT NULL AND kv_committed_peak_bytes IS NOT NULL)
        """
    )
    found = connection.execute("SELECT max(t), count(*) FROM timeline").fetchone()
    assert found is not None  # An aggregate without GROUP BY always has one row.
    span, count = found
    if not count:
        return {"span_s": None, "bin_s": None, "series": {}}
    width = span / (NUM_BINS - 1) if span > 0 else 1.0
    rows = connection.execute(
        """
        SELECT configuration, CAST(floor(t / $width) AS INT) AS bin,
            sum(kv_committed_byte_s) / nullif(sum(wall_s), 0), max(kv_committed_peak_bytes),
            sum(kv_used_byte_s) / nullif(sum(wall_s), 0), max(kv_used_peak_bytes)
        FROM timeline GROUP BY ALL ORDER BY configuration, bin
        """,
        {"width": width},
    ).fetchall()
    names = ("committed_mean", "committed_peak", "used_mean", "used_peak")
    series: dict[str, dict[str, list[float | None]]] = {}
    for configuration, place, *values in rows:
        empty: dict[str, list[float | None]] = {name: [] for name in ("t_s", *names)}
        each = series.setdefault(configuration, empty)
        each["t_s"].append((place + 0.5) * width)
        for name, value in zip(names, values, strict=True):
            each[name].append(value)
    return {"span_s": span, "bin_s": width, "series": series}
