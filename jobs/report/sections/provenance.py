"""Where the numbers come from, on the page: model, devices, versions, spec, run, judgement."""

from __future__ import annotations

import json
from typing import Any

from jobs.formatting import bytes_text
from jobs.report.document import Cell, Definitions, Part, Prose, Row, Section, Source, Table, table
from jobs.report.labels import METRIC, label, names_in

Data = dict[str, Any]

_FINGERPRINT = 16


def origin(data: Data) -> Section:
    """All that is needed to run the same trial again, and to judge it again."""
    found = data["provenance"]
    parts: list[Part] = [
        Definitions([*_run(data, found), *_machine(data, found), *_sampling(found)]),
        Prose("How it is judged", "heading"),
        Definitions(_judgement(data)),
        _margins(data),
        Prose("What was run", "heading"),
        _configurations(found["configurations"]),
        _datasets(found["datasets"]),
    ]
    if found["errors"]:
        parts.append(_errors(found["errors"]))
    kept = ("model", "configurations", "datasets", "seeds", "generation", "share_prompts",
            "weight_order")  # fmt: skip
    spec = {name: found[name] for name in kept} | {"analysis": data["judgement"]}
    parts.append(Source("The trial as resolved (JSON)", json.dumps(spec, indent=1, default=str,
                                                                  ensure_ascii=False)))  # fmt: skip
    return Section("provenance", "Provenance", parts)


def _run(data: Data, found: Data) -> list[tuple[str, str]]:
    git = found["git"]
    commit = str(git.get("commit") or "not known")
    if git.get("dirty"):
        commit += ", with changes that were not committed"
    trial = data["trial"]
    return [
        ("Run", found["run_id"]),
        ("Begun", _time(found["created_at"])),
        ("Cells", f"{trial['cells_done']:,} of {trial['cells_planned']:,} planned"),
        ("Rows", f"{trial['rows']:,}, {trial['num_errors']:,} of them errors"),
        ("Code", commit),
    ]


def _time(created: object) -> str:
    return str(created).replace("T", " ").replace("+00:00", " UTC") if created else "not known"


def _cpus(there: int, usable: int | None) -> str:
    return f"{there} CPUs" if usable in (None, there) else f"{usable} of {there} CPUs"


def _machine(data: Data, found: Data) -> list[tuple[str, str]]:
    model, hardware = found["model"], found["hardware"]
    named = model["path"] + (f" at {model['revision']}" if model.get("revision") else "")
    cells = [f"{model['dtype']} on {model['device']}"]
    if model.get("fingerprint"):
        cells.append(f"fingerprint {model['fingerprint'][:_FINGERPRINT]}")
    machine = [str(hardware[name]) for name in ("processor",) if hardware.get(name)]
    if hardware.get("cpus"):
        machine.append(_cpus(hardware["cpus"], hardware.get("usable_cpus")))
    if hardware.get("memory_bytes"):
        machine.append(f"{bytes_text(hardware['memory_bytes'])} of memory")
    if hardware.get("workers"):
        machine.append(f"{len(hardware['workers'])} workers")
    versions = found["versions"] | ({"python": found["python"]} if found["python"] else {})
    return [
        ("Model", f"{named} ({', '.join(cells)})"),
        ("Devices", ", ".join(data["trial"]["devices"]) or "none has run a cell yet"),
        ("Machine", ", ".join(machine) or "not known"),
        ("Platform", str(found["platform"] or "not known")),
        ("Versions", ", ".join(f"{n} {v}" for n, v in versions.items()) or "not known"),
    ]


def _sampling(found: Data) -> list[tuple[str, str]]:
    generation = found["generation"]
    # 0 is a value, such as the temperature of greedy sampling.
    kept = {n: v for n, v in generation.items() if v not in (None, []) and v is not False}
    return [
        ("Seeds", ", ".join(map(str, found["seeds"])) or "none"),
        ("Sampling", ", ".join(f"{n.replace('_', ' ')} {v}" for n, v in kept.items())),
        ("Prompts prefilled once", f"shared by: {found['share_prompts']}"),
        ("Weights", f"in memory by {found['weight_order']}"),
    ]


def _judgement(data: Data) -> list[tuple[str, str]]:
    judgement = data["judgement"]
    alpha = f"{judgement['alpha'] * 100:g} %"
    return [
        ("Primary metrics", ", ".join(label(name) for name in judgement["primary"])),
        ("Error rate α", f"{alpha}: family-wise over all primary verdicts (Holm); rate of false "
                         "discoveries over the others (Benjamini-Hochberg)"),
        ("Looks", f"this is number {len(data['looks']) + 1}, at {data['level'] * 100:.2g} %; all "
                  "looks together keep to α"),
        ("Power aimed at", f"{judgement['power'] * 100:g} %"),
        ("Intervals", f"each at 95 %, over clusters: {'; '.join(_methods(data)) or 'none yet'}"),
        ("Tests", "swaps of the two sides of whole clusters: for a difference, its interval, and "
                  "two one-sided tests (TOST) at ±δ for equivalence"),
    ]  # fmt: skip


def _methods(data: Data) -> list[str]:
    effects = [effect for c in data["comparisons"] for effect in c["effects"]]
    return sorted({e["method"] for e in effects if e["low"] is not None and not e["identical"]})


def _margins(data: Data) -> Table:
    judgement, rows = data["judgement"], list[Row]()
    # Which is better of a score may be its task's to say, so effects have it.
    found = {row["metric"]: row["direction"] for c in data["comparisons"] for row in c["effects"]}
    for name in names_in(data):
        metric = METRIC[name]
        margin = judgement["margins"].get(name, metric.margin)
        shown = f"±{margin * 100:g} %" if metric.is_relative else f"±{margin:g}"
        direction = found.get(name, judgement["directions"].get(name, metric.direction))
        family = "primary" if name in judgement["primary"] else "exploratory"
        rows.append([Cell(label(name), "key"), shown, Cell(direction), Cell(family)])
    columns = ("Metric", "δ", "Better where", "Family")
    return table("Margins and directions", columns, rows)


def _configurations(configurations: list[Data]) -> Table:
    rows: list[Row] = []
    for c in configurations:
        chosen = [_optimization(o) for o in c["optimizations"]]
        engine = f"batch {c['batch_size']}, {c['cache']} cache"
        if c["prefill_chunk"]:
            engine += f", prefill in {c['prefill_chunk']}"
        against = f"repeats {c['duplicate_of']}" if c["duplicate_of"] else c["vs"] or "reference"
        rows.append(
            [
                Cell(c["name"], "key"),
                Cell("; ".join(chosen) or "none", "words"),
                Cell(engine, "words"),
                Cell(against, "words"),
                Cell(c["fingerprint"][:_FINGERPRINT], "code"),
            ]
        )
    columns = ("Configuration", "Optimisations", "Engine", "Compared with", "Fingerprint")
    return table("Configurations", columns, rows)


def _optimization(chosen: Data) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in chosen["settings"].items())
    return f"{chosen['name']} ({settings})" if settings else str(chosen["name"])


def _datasets(datasets: list[Data]) -> Table:
    rows: list[Row] = []
    for d in datasets:
        rows.append(
            [
                Cell(d["name"], "key"),
                f"{d['num_prompts']:,}",
                f"{d['num_shards']:,}",
                Cell("yes" if d["has_targets"] else "no"),
                Cell(", ".join(d["scorers"]) or "none"),
                Cell(d["fingerprint"][:_FINGERPRINT], "code"),
            ]
        )
    columns = ("Dataset", "Prompts", "Shards", "Targets", "Scorers", "Fingerprint")
    return table("Datasets", columns, rows)


def _errors(errors: list[Data]) -> Table:
    rows: list[Row] = [
        [Cell(e["message"], "key"), f"{e['num_rows']:,}", f"{e['num_configurations']:,}"]
        for e in errors
    ]
    return table("Commonest errors", ("Message", "Rows", "Configurations"), rows, fold=False)
