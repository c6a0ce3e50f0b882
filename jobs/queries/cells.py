"""The columns of `cells`: one row per committed cell, taken from the parts' footers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.results.files import KINDS, Part, facts_schema, facts_table
from cluster.results.results import Results
from cluster.results.schema import FLOAT, INT, TEXT, Column
from cluster.results.snapshot import Readable, readable
from cluster.storage.open_store import read_ahead, threads_for

CELLS = [
    Column("key", TEXT, "name that the cell was committed under", True),
    Column("kind", TEXT, "generations or likelihoods", True),
    Column("configuration", TEXT, "name of the configuration in the spec", True),
    Column("dataset", TEXT, "name of the dataset in the spec", True),
    Column("shard", pa.int32(), "shard of the dataset, from 0", True),
    Column("seed", INT, "sampling seed; null for likelihoods", True),
    Column("start", INT, "first row within the dataset", True),
    Column("stop", INT, "row after the last", True),
    Column("rows", INT, "rows committed, errors included", True),
    Column("num_errors", INT, "rows that failed", True),
    Column(
        "joint_cells",
        INT,
        "cells that one call ran (seeds that share prompts): each has an "
        "even share of the call's times and byte-seconds, and all of its peaks and steps",
    ),
    Column("wall_s", FLOAT, "time that the engine took for the cell"),
    Column("num_steps", INT, "forward passes of the model"),
    Column(
        "mean_occupied_share",
        FLOAT,
        "slots that held a sequence, as a share of the batch size, mean over the decode steps of "
        "the call; null without any, and in cells that were run before it was recorded",
    ),
    Column("prefill_s", FLOAT, "part of wall_s spent on prompts"),
    Column("decode_s", FLOAT, "part of wall_s spent on generating"),
    Column("completion_tokens", INT, "generated tokens, configuration's vocabulary", True),
    Column("base_completion_tokens", INT, "the same text in the baseline's tokens", True),
    Column("completion_bytes", INT, "UTF-8 bytes of the completions", True),
    Column("weight_bytes_shared", INT, "weights that other configurations of the worker use too"),
    Column("weight_bytes_private", INT, "weights that are this configuration's alone"),
    Column("kv_used_peak_bytes", INT, "peak over the cell of live tokens x bytes per token"),
    Column("kv_committed_peak_bytes", INT, "peak of physical memory held for keys and values"),
    Column("kv_reserved_peak_bytes", INT, "peak of address space held for keys and values"),
    Column("kv_used_byte_s", FLOAT, "time integral of used KV bytes"),
    Column("kv_committed_byte_s", FLOAT, "time integral of committed KV bytes"),
    Column("kv_reserved_byte_s", FLOAT, "time integral of reserved KV bytes"),
    Column("kv_books_bytes", INT, "committed KV bytes at the end, by the cache's own books"),
    Column("kv_system_bytes", INT, "the same as the system counts them; null where it cannot"),
    Column(
        "num_shared_prefills",
        INT,
        "prompts that the call prefilled for sharing; null without it",
    ),
    Column("prefix_s", FLOAT, "prefilling of shared prompts beforehand, in no other time"),
    Column("num_new_tokens", INT, "tokens that the baseline's vocabulary lacks; null for none"),
    Column(
        "domain_saving",
        FLOAT,
        "share of the baseline's tokens that the vocabulary saves on held-out text of its domain, "
        "counted when it was prepared",
    ),
    Column(
        "off_domain_inflation",
        FLOAT,
        "share of tokens that it adds to protected text of other domains, which it was not chosen "
        "on; null where none was given",
    ),
    Column(
        "sparsity",
        FLOAT,
        "share of the weights of attention and MLP whose input was zero, over the tokens that were "
        "masked (generated ones, and targets); null where none is",
    ),
    Column(
        "layer_bytes",
        INT,
        "bytes of weights of attention and MLP that masked passes would read if they read all; "
        "null on GPU, as the next two are",
    ),
    Column("skipped_bytes", INT, "bytes of them that were not read"),
    Column("select_s", FLOAT, "part of wall_s spent on choosing activations"),
    Column("process_rss_bytes", INT, "resident memory of the worker, with all configurations"),
    Column("device_used_bytes", INT, "memory in use of the GPU, whoever uses it; null on CPU"),
    Column("device_peak_bytes", INT, "peak device memory minus the cell's start; null on CPU"),
    Column("load_average", FLOAT, "the node's one-minute load at the cell's start"),
    Column("threads", pa.int32(), "threads that torch was given"),
    Column("order_in_block", pa.int32(), "position of the configuration in its block, from 0"),
    Column("block", INT, "index of the block in canonical order"),
    Column("round", pa.int32(), "pass over the trial, where leases are used; else 0"),
    Column("worker", TEXT, "actor that ran the cell"),
    Column("node", TEXT, "host name of the node"),
    Column("device", TEXT, "cpu, or the GPU's name"),
    Column("attempt", TEXT, "id of the execution that won the commit"),
    Column("started_at", TEXT, "start, wall clock, ISO 8601 in UTC"),
]


def cells_table(results: Results, found: Readable | None = None) -> pa.Table:
    """The facts of all committed cells; a fact that a cell lacks is null.

    Those of compacted parts come from one file; else one footer is read per part. `found` spares
    looking for both again. Raises InputError where a part is damaged.
    """
    found = readable(results) if found is None else found
    compacted, parts = found.compacted, [part for kind in KINDS for part in found.parts[kind]]
    if compacted is None:
        return facts_table(CELLS, _facts(results, parts))
    if compacted.cell_columns != [column.name for column in CELLS]:
        # Compacted by a version that kept other facts: the footers have them all.
        return facts_table(CELLS, _facts(results, results.cell_parts()[0]))
    source = pa.BufferReader(results.store.read(compacted.cells.name))
    table = pq.read_table(source).cast(facts_schema(CELLS))
    if found.stale:
        is_stale = pc.is_in(table["key"], pa.array(sorted(found.stale), pa.string()))
        table = table.filter(pc.invert(is_stale))
    return pa.concat_tables([table, facts_table(CELLS, _facts(results, parts))])


def _facts(results: Results, parts: Sequence[Part]) -> list[dict[str, Any]]:
    return list(read_ahead(results.cell_facts, parts, threads_for(results.store)))
