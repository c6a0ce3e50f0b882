"""The worker, as a plain class: rows are facts of the engine, committed under the cell's key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from cluster.plan import (
    Configuration,
    Dataset,
    Generation,
    ModelSource,
    Plan,
    WorkerResources,
)
from cluster.results.results import MANIFEST, Results, write_prompts
from cluster.results.verification import faults_of
from cluster.worker.worker import Worker
from optim.errors import InputError

PROMPTS = ["one", "two and more", "three " * 4, "four"]


def prepare(folder: Path, model: Path, **changes: Any) -> tuple[Plan, Results]:
    plan = Plan(
        run_id="run",
        output=str(folder / "out"),
        model=ModelSource(path=str(model)),
        configurations=(
            Configuration(name="one", batch_size=1, fingerprint="1"),
            Configuration(name="two", batch_size=2, fingerprint="2", cache="static"),
        ),
        datasets=(
            Dataset(
                name="d",
                num_prompts=6,
                first_row=0,
                num_shards=2,
                fingerprint="f",
                has_targets=True,
            ),
        ),
        seeds=(3,),
        generation=Generation(
            max_new_tokens=12, temperature=0.9, token_times=True, completion_ids=True
        ),
        workers=WorkerResources(cpus=1),
    ).model_copy(update=changes)
    results = Results(plan.output)
    results.store.create(MANIFEST, json.dumps({"plan": plan.model_dump(mode="json")}).encode())
    rows = [
        {"dataset": "d", "row": i, "prompt_id": f"p{i}", "prompt": text, "is_chat": False,
         "target": " end" if i else None, "choices": [" a", " bc"] if i == 1 else None}
        for i, text in enumerate(PROMPTS)
    ]  # fmt: skip
    rows.append({"dataset": "d", "row": 4, "prompt_id": "line-5", "error": "line 5: bad"})
    rows.append(
        {"dataset": "d", "row": 5, "prompt_id": "p5", "prompt": "z" * 400, "is_chat": False}
    )
    write_prompts(results.store, rows)
    return plan, results


def run_all(plan: Plan) -> Worker:
    worker = Worker(plan.model_dump_json(), 0)
    worker.load()
    for block in plan.blocks():
        worker.run(block.model_dump_json(), [cell.key for cell in block.cells])
    return worker


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> tuple[Plan, Results]:
    plan, results = prepare(tmp_path_factory.mktemp("worker"), tiny_model_folder)
    run_all(plan)
    return plan, results


def rows(results: Results, configuration: str) -> dict[str, dict[str, Any]]:
    table = results.read("generations").to_pylist()
    return {r["prompt_id"]: r for r in table if r["configuration"] == configuration}


def test_every_prompt_is_a_row_in_every_configuration(ran: tuple[Plan, Results]) -> None:
    plan, results = ran
    assert list(faults_of(results)) == []
    expected = {"p0", "p1", "p2", "p3", "p5", "line-5"}
    for configuration in plan.configurations:
        assert set(rows(results, configuration.name)) == expected


def test_rows_hold_the_facts_of_the_completion(ran: tuple[Plan, Results]) -> None:
    _, results = ran
    tokenizer = tiny_models.tokenizer()
    for row in rows(results, "two").values():
        if row["error"]:
            continue
        ids = row["completion_ids"]
        ended = ids[-1] == tiny_models.END
        assert row["completion_tokens"] == len(ids) == row["base_tokens_spent"]
        assert row["finish_reason"] == ("stop" if ended else "length")
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert row["completion_text"] == text
        assert row["completion_bytes"] == len(text.encode())
        assert row["completion_chars"] == len(text)
        assert row["base_completion_tokens"] == len(tokenizer(text)["input_ids"]) + ended
        assert row["prompt_tokens"] == row["base_prompt_tokens"] == row["prompt_bytes"]
        assert len(row["token_times_s"]) == len(ids)
        assert row["ttft_s"] == pytest.approx(row["token_times_s"][0], rel=1e-5)
        assert row["kv_reserved_bytes"] >= row["kv_committed_bytes"] >= row["kv_used_bytes"] > 0
        assert (row["batch_size"], row["warmup"], row["device"]) == (2, False, "cpu")


def test_faulty_prompts_are_error_rows_with_null_metrics(ran: tuple[Plan, Results]) -> None:
    _, results = ran
    found = rows(results, "one")
    assert found["line-5"]["error"] == "line 5: bad"
    assert "400 tokens" in found["p5"]["error"]
    for name in ("line-5", "p5"):
        row = found[name]
        assert row["finish_reason"] == "error"
        metrics = ["prompt_tokens", "completion_tokens", "ttft_s", "e2e_s", "kv_used_bytes"]
        assert all(row[metric] is None for metric in [*metrics, "completion_text"])


def test_likelihoods_of_targets_and_choices(ran: tuple[Plan, Results]) -> None:
    _, results = ran
    table = [r for r in results.read("likelihoods").to_pylist() if r["configuration"] == "one"]
    assert {(r["prompt_id"], r["candidate"]) for r in table} == {
        ("p1", -1), ("p2", -1), ("p3", -1), ("p1", 0), ("p1", 1),
    }  # fmt: skip
    lm = tiny_models.model("llama")
    for row in table:
        text = {-1: " end", 0: " a", 1: " bc"}[row["candidate"]]
        prompt = PROMPTS[int(row["prompt_id"][1])]
        ids = torch.tensor([lm.tokenizer(prompt + text)["input_ids"]])
        with torch.inference_mode():
            log_p = lm.model(ids).logits[0].log_softmax(-1)
        taken = log_p[:-1].gather(1, ids[0, 1:, None])[-len(text) :]
        assert row["nats"] == pytest.approx(-float(taken.sum()), rel=1e-4)
        assert row["num_bytes"] == len(text)


def test_cells_carry_time_memory_and_circumstances(ran: tuple[Plan, Results]) -> None:
    _, results = ran
    for facts in results.cells():
        assert facts["wall_s"] >= facts["prefill_s"] + facts["decode_s"] > 0
        assert facts["kv_used_peak_bytes"] > 0
        assert facts["weight_bytes_shared"] > 0
        assert facts["weight_bytes_private"] == 0
        assert facts["threads"] == 1
        share = facts["mean_occupied_share"]
        assert (share is None) == (facts["kind"] == "likelihoods")
        assert share is None or 0 < share <= 1
        assert facts["order_in_block"] in (0, 1)
    orders = {f["order_in_block"] for f in results.cells()}
    assert orders == {0, 1}


def test_a_second_run_of_a_cell_is_discarded(ran: tuple[Plan, Results]) -> None:
    plan, results = ran
    before = results.read("generations").to_pylist()
    worker = Worker(plan.model_dump_json(), 1)
    worker.load()
    block = next(plan.blocks())
    receipts = worker.run(block.model_dump_json(), [cell.key for cell in block.cells])
    assert all(receipt["is_duplicate"] for receipt in receipts)
    assert results.read("generations").to_pylist() == before


def test_unknown_cache_and_bad_model_are_input_errors(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    configurations = (Configuration(name="x", cache="nosuch", fingerprint="1"),)
    plan, _ = prepare(tmp_path, tiny_model_folder, configurations=configurations)
    with pytest.raises(InputError, match="no cache called 'nosuch'"):
        Worker(plan.model_dump_json(), 0).load()
    plan = plan.model_copy(update={"model": ModelSource(path=str(tmp_path))})
    with pytest.raises(InputError, match="not a model"):
        Worker(plan.model_dump_json(), 0).load()
