"""`verify` and `--repair`: every kind of damage is found, set aside and run again, and no more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import pytest
from program import Run
from trial_results import make_results

from cluster.results.files import Part, encode_part
from cluster.results.integrity import SUCCESS
from cluster.results.receipts import Receipts, write_receipt
from cluster.results.results import Results
from cluster.results.verification import Verification, faults_of
from cluster.storage.driver_lock import LOCK_FILE, driving
from jobs.queries.sql import run_sql
from optim.errors import InputError

SMALL: dict[str, Any] = {"num_datasets": 1, "num_prompts": 8, "num_shards": 4, "seeds": (1,)}


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 3
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": truncated,
    "zero bytes": lambda data: b"",
    "flipped": flipped,
    "footer cut": lambda data: data[:-8],
}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return make_results(tmp_path / "out", **SMALL)


def damage_four(results: Results) -> dict[str, Part]:
    """One part of each kind of damage."""
    parts = results.parts("generations")[:4]
    for part, harm in zip(parts, DAMAGES.values(), strict=True):
        path = Path(results.store.path(part.name))
        path.write_bytes(harm(path.read_bytes()))
    return dict(zip(DAMAGES, parts, strict=True))


def test_four_damages_are_four_faults(results: Results, run: Run) -> None:
    damaged = damage_four(results)
    code, out, _ = run("verify", results.output)
    assert code == 1
    assert "4 faults (4 damaged)" in out
    figures.note(
        8, "damage", "4 of 4 found; only those run again; queries refuse them", found=len(damaged)
    )
    for part in damaged.values():
        assert out.count(part.name) == 1
    assert "--repair" in out


def test_a_repair_leaves_just_these_cells_to_run(results: Results, run: Run) -> None:
    results.store.create(SUCCESS, b"{}")
    every = results.committed_keys()
    damaged = damage_four(results)
    before = {part.name: results.store.read(part.name) for part in damaged.values()}
    assert run("verify", results.output, "--repair")[0] == 1
    gone = {part.key for part in damaged.values()}
    assert results.sound_keys() == results.committed_keys() == every - gone
    kept = {results.store.read(n) for n in results.store.list("_quarantine") if "json" not in n}
    assert kept == set(before.values()), "nothing is deleted"
    assert not results.store.exists(SUCCESS), "the trial is not complete any more"
    assert not any(Receipts(results.store).seals(key) for key in gone)

    # What `evaluate` does with the missing cells is to commit them again.
    make_results(results.output, **SMALL)
    assert results.sound_keys() == every
    code, out, _ = run("verify", results.output)
    assert (code, "0 faults" in out) == (0, True)


def test_a_resumed_run_sees_what_listings_can_tell(results: Results) -> None:
    """Sizes tell of all but flipped bits, which `verify` and queries find."""
    every = results.committed_keys()
    damaged = damage_four(results)
    told = {part.key for name, part in damaged.items() if name != "flipped"}
    assert results.sound_keys() == every - told
    assert results.committed_keys() == every, "asking moves nothing"
    assert results.sound_keys(set_aside_others=True) == every - told
    assert results.committed_keys() == every - told
    assert [fault.kind for fault in faults_of(results)].count("missing") == 3


@pytest.mark.parametrize("damage", ["truncated", "zero bytes", "footer cut"])
def test_a_resumed_run_sees_them_without_receipts(results: Results, damage: str) -> None:
    for name in results.store.list("_receipts"):
        results.store.delete(name)
    every = results.committed_keys()
    assert results.sound_keys() == every
    part = damage_four(results)[damage]
    assert part.key not in results.sound_keys()
    assert len(every - results.sound_keys()) == 3


def test_what_was_mended_meanwhile_is_not_set_aside(results: Results) -> None:
    """Another run was here between the listing and the move."""
    part = results.parts("generations")[0]
    path = Path(results.store.path(part.name))
    sound = path.read_bytes()
    path.write_bytes(b"")
    verification = Verification(results)
    [fault] = [fault for fault in verification.faults() if fault.kind == "damaged"]
    path.write_bytes(sound)
    assert verification.repair(fault) is None
    assert path.read_bytes() == sound


def test_a_deleted_receipt_is_told_and_made_again(results: Results, run: Run) -> None:
    part = results.parts("generations")[2]
    [name] = [n for n in results.store.list("_receipts") if part.key in n]
    before = results.store.read(name)
    results.store.delete(name)
    code, out, _ = run("verify", results.output)
    assert code == 0
    assert f"{part.name}: its receipt was missing" in out
    assert results.store.read(name) == before
    assert "missing" not in run("verify", results.output)[1]


def test_receipts_of_older_versions_still_seal(results: Results) -> None:
    for name in results.store.list("_receipts"):
        told = json.loads(results.store.read(name))
        results.store.delete(name)
        old = {key: told[key] for key in ("key", "rows", "sha256")}
        results.store.create(f"_receipts/{told['key']}.json", json.dumps(old).encode())
    assert list(faults_of(results)) == []
    part = damage_four(results)["flipped"]
    assert len([fault for fault in faults_of(results) if fault.kind == "damaged"]) == 4
    with pytest.raises(InputError):
        run_sql(results, "SELECT 1")
    assert Receipts(results.store).names(part.key) == [f"_receipts/{part.key}.json"]


def recommit(results: Results, part: Part, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Other rows under a part's name, with a receipt of their own."""
    rows = results.read_part(part).drop_columns(["configuration"]).to_pylist()
    facts = results.cell_facts(part)
    rows = change(rows) or rows
    data = encode_part(part.kind, rows, facts | {"rows": len(rows)})
    results.store.replace(part.name, data)
    for name in Receipts(results.store).names(part.key):
        results.store.delete(name)
    sha256 = hashlib.sha256(data).hexdigest()
    write_receipt(results.store, part.key, sha256, len(data), len(rows))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[:1], "has 1 rows instead of 2"),
        (lambda rows: [rows[0], rows[0]], "the same prompt twice"),
        (lambda rows: [rows[0], rows[1] | {"prompt_id": "p007"}], "other prompts than its cell"),
        (lambda rows: [row | {"seed": 9} for row in rows], "rows whose seed is not 1"),
        (lambda rows: [row | {"dataset": "x"} for row in rows], "rows whose dataset is not set0"),
        (lambda rows: [row | {"cell": "0" * 16} for row in rows], "rows whose cell is not"),
    ],
)
def test_rows_that_are_not_the_cells(
    results: Results, change: Callable[[list[dict[str, Any]]], Any], problem: str
) -> None:
    part = results.parts("generations")[0]
    recommit(results, part, change)
    [fault] = list(faults_of(results))
    assert (fault.name, fault.kind) == (part.name, "damaged")
    assert problem in fault.problem


def test_candidates_twice(results: Results) -> None:
    part = results.parts("likelihoods")[0]
    recommit(results, part, lambda rows: [*rows, rows[0]])
    [fault] = list(faults_of(results))
    assert "twice" in fault.problem


def test_foreign_and_missing_parts(results: Results, run: Run) -> None:
    first, second = results.parts("generations")[:2]
    stranger = first.name.replace(first.key, "0123456789abcdef")
    results.store.create(stranger, results.store.read(first.name))
    results.store.move(second.name, second.name.replace("c-again", "c-fast"))
    kinds = {fault.name: fault.kind for fault in faults_of(results)}
    assert kinds == {
        stranger: "foreign",
        second.name: "missing",
        second.name.replace("c-again", "c-fast"): "foreign",
    }
    assert run("verify", results.output, "--repair")[0] == 1
    assert [fault.kind for fault in faults_of(results)] == ["missing"]


def test_foreign_parts_count_nowhere(results: Results, caplog: pytest.LogCaptureFixture) -> None:
    def answers() -> list[Any]:
        sums = "SELECT count(*) AS n, sum(completion_tokens) AS s FROM generations"
        return [run_sql(results, q).to_pylist() for q in (sums, "SELECT count(*) FROM cells")]

    before, keys = answers(), results.committed_keys()
    first, second = results.parts("generations")[:2]
    stranger = first.name.replace(first.key, "0123456789abcdef")
    results.store.create(stranger, results.store.read(first.name))
    elsewhere = second.name.replace("c-again", "c-fast")
    results.store.create(elsewhere, results.store.read(second.name))
    assert answers() == before
    assert len(results.read("generations")) == before[0][0]["n"]
    assert results.committed_keys() == results.sound_keys() == keys
    [said] = [record.getMessage() for record in caplog.records if "left out" in record.message]
    assert f"{results.output}: 2 parts" in said
    results.store.delete(second.name)
    assert results.sound_keys() == keys - {second.key}, "a part elsewhere is not the cell's"
    assert second.key not in run_sql(results, "SELECT key FROM cells")["key"].to_pylist()


def test_a_repair_waits_for_no_driver_and_disturbs_none(results: Results, run: Run) -> None:
    damage_four(results)
    before = results.store.list("generations")
    with driving(results.store, results.output):
        code, _, err = run("verify", results.output, "--repair")
        assert code == 3
        assert "another driver is running this trial" in " ".join(err.split())
        assert results.store.list("generations") == before
        assert run("verify", results.output)[0] == 1, "to look is no harm"
    assert run("verify", results.output, "--repair")[0] == 1
    assert len(results.store.list("generations")) == len(before) - 4
    assert not results.store.exists(LOCK_FILE)


def test_absent_prompts(results: Results, run: Run) -> None:
    results.store.delete("inputs/prompts.parquet")
    code, out, _ = run("verify", results.output)
    assert code == 1
    assert "inputs/prompts.parquet: missing" in out
    code, _, err = run("query", results.output, "SELECT count(*) FROM generations")
    assert code == 2
    assert "the prompts as run are not there" in " ".join(err.split())


def test_targets_and_choices_without_their_likelihood(results: Results) -> None:
    part = results.parts("likelihoods")[0]
    recommit(results, part, lambda rows: rows[1:])
    [fault] = list(faults_of(results))
    assert (fault.name, fault.kind) == (part.name, "damaged")
    assert "has 5 rows, which are not one for each of the 6 targets and choices" in fault.problem


def test_damaged_prompts(results: Results) -> None:
    path = Path(results.store.path("inputs/prompts.parquet"))
    path.write_bytes(flipped(path.read_bytes()))
    assert "prompts as run" in next(faults_of(results)).problem
    with pytest.raises(InputError, match="prompts are not what was run"):
        run_sql(results, "SELECT count(*) FROM prompts")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("view", ["generations", "cells"])
def test_queries_refuse_damaged_parts(results: Results, damage: str, view: str, run: Run) -> None:
    sql = f"SELECT count(*) AS n FROM {view}"
    assert run_sql(results, sql).num_rows == 1
    part = results.parts("generations")[0]
    path = Path(results.store.path(part.name))
    sound = path.read_bytes()
    path.write_bytes(DAMAGES[damage](sound))
    for words in (["query", results.output, sql], ["report", results.output]):
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        told = " ".join(err.split())
        assert part.name in told
        assert f"optrial verify {results.output} --repair" in told
    path.write_bytes(sound)
    assert run_sql(results, sql).num_rows == 1


def test_a_flipped_part_without_a_receipt_is_refused_too(results: Results) -> None:
    part = results.parts("generations")[0]
    results.store.delete(Receipts(results.store).names(part.key)[0])
    assert run_sql(results, "SELECT count(*) FROM generations").num_rows == 1
    path = Path(results.store.path(part.name))
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        run_sql(results, "SELECT count(*) FROM generations")


def test_files_are_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: Results
) -> None:
    from cluster.results import checksum_cache as checked

    hashed: list[str] = []
    real = checked.sha256_of
    monkeypatch.setattr(checked, "_WORTH_KEEPING", 1)
    monkeypatch.setattr(
        checked, "sha256_of", lambda store, name: hashed.append(name) or real(store, name)
    )
    sql = "SELECT count(*) AS n FROM generations"
    run_sql(results, sql)
    assert len(hashed) == len(set(hashed)) == 32 + 1, "parts of both kinds, and the prompts"
    run_sql(results, sql)
    checked._SEEN.clear()  # as a new process
    run_sql(Results(results.output), sql)
    assert len(hashed) == 33
    path = Path(results.store.path(results.parts("generations")[0].name))
    path.write_bytes(path.read_bytes())
    run_sql(results, sql)
    assert len(hashed) == 34, "its times of change are others"


def test_fault_of_a_resumed_listing_names_sizes(results: Results) -> None:
    from cluster.results.integrity import unsound

    part = results.parts("generations")[0]
    short = part._replace(num_bytes=5)
    [fault] = unsound(results.store, [short], Receipts(results.store))
    assert "has 5 bytes instead of" in fault.problem
