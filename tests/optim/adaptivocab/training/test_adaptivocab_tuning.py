"""Tuning of real (tiny) models: what is trained, on what, and that it can be gone on with."""

from __future__ import annotations

import copy
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from optim.adaptivocab.training import segments, trainable, tuning
from optim.adaptivocab.training.bits_per_byte import bits_per_byte
from optim.adaptivocab.training.trainable import blocks, choose_trained
from optim.adaptivocab.training.tuning import tune
from optim.adaptivocab.training.tuning_settings import Tuning, TuningFacts
from optim.errors import InputError

TEXTS = ["hello world " * 30, "the quick brown fox\n" * 20, "naïve café, 東京 " * 15, "x" * 150]
SEGMENTS = list(segments.cut(TEXTS, 100))
QUICK = Tuning(
    epochs=2, learning_rate=0.01, batch_bytes=500, pass_bytes=200, checkpoint_steps=2, warm_up=0.2
)


@pytest.fixture(autouse=True)
def every_step_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "REPORT_EVERY_S", 0.0)


def fresh(architecture: str = "llama") -> PreTrainedModel:
    return copy.deepcopy(tiny_models.model(architecture).model)


def tied() -> PreTrainedModel:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**tiny_models._GROUPED, tie_word_embeddings=True)).eval()


def run(
    model: PreTrainedModel, work: Path, settings: Tuning = QUICK, **rest: object
) -> TuningFacts:
    return tune(model, tiny_models.tokenizer(), SEGMENTS, settings, work=work, **rest)  # type: ignore[arg-type]


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters()}


def changed(before: dict[str, torch.Tensor], model: PreTrainedModel) -> set[str]:
    return {name for name, each in model.named_parameters() if not torch.equal(before[name], each)}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def stops_at(step: int) -> object:
    def on_stage(stage: str) -> None:
        if stage.startswith(f"tuning: step {step} of"):
            raise InterruptedError

    return on_stage


# Segments


# What is trained


@pytest.mark.parametrize(
    ("architecture", "rows", "layers"),
    [
        ("llama", {"model.embed_tokens.weight", "lm_head.weight"}, "model.layers"),
        ("mistral", {"model.embed_tokens.weight", "lm_head.weight"}, "model.layers"),
        ("qwen3", {"model.embed_tokens.weight", "lm_head.weight"}, "model.layers"),
        (
            "phi",
            {"model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"},
            "model.layers",
        ),
        ("gpt2", {"transformer.wte.weight"}, "transformer.h"),
        ("gpt_neox", {"gpt_neox.embed_in.weight", "lm_head.weight"}, "gpt_neox.layers"),
        ("tied", {"model.embed_tokens.weight"}, "model.layers"),
    ],
)
def test_rows_head_first_and_last_block_are_trained_and_nothing_else(
    architecture: str, rows: set[str], layers: str, tmp_path: Path
) -> None:
    model = tied() if architecture == "tied" else fresh(architecture)
    before = weights(model)
    names = set(before)
    expected = rows | {name for name in names if name.startswith((f"{layers}.0.", f"{layers}.2."))}
    choose_trained(model, QUICK)
    assert {name for name, each in trainable.trained(model)} == expected
    facts = run(model, tmp_path)
    # The keys' bias has no gradient: softmax does not see it.
    assert expected - changed(before, model) <= {name for name in names if "k_proj.bias" in name}
    assert changed(before, model) <= expected
    assert facts.num_trained == sum(before[name].numel() for name in expected)
    assert facts.last_loss < facts.first_loss - 1


def test_all_blocks_or_none_are_trained_where_the_settings_say(tmp_path: Path) -> None:
    model = fresh()
    choose_trained(model, QUICK.model_copy(update={"trained_layers": "none"}))
    rows = {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name for name, _ in trainable.trained(model)} == rows
    choose_trained(model, QUICK.model_copy(update={"trained_layers": "all"}))
    assert {name for name, _ in model.named_parameters()} - {
        name for name, _ in trainable.trained(model)
    } == {"model.norm.weight"}


def test_a_model_without_blocks_is_refused() -> None:
    model = fresh()
    model.config.num_hidden_layers = 5
    with pytest.raises(InputError, match=r"trained_layers.*no list of 5 blocks"):
        blocks(model)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_trains_adapters_and_rows_and_leaves_a_plain_model(
    architecture: str, tmp_path: Path
) -> None:
    model = fresh(architecture)
    before, modules, names = weights(model), list(map(str, model.modules())), set(vars(model))
    facts = run(model, tmp_path, QUICK.model_copy(update={"lora_rank": 2}))
    assert list(map(str, model.modules())) == modules
    assert set(vars(model)) == names
    body = model.base_model_prefix
    linear = {name for name, each in before.items() if each.dim() == 2 and body in name}
    linear.discard("transformer.wpe.weight")
    assert changed(before, model) == linear | {n for n in before if n.startswith("lm_head.")}
    assert facts.last_loss < facts.first_loss - 1
    delta = weights(model)[min(linear)] - before[min(linear)]
    if "embed" not in min(linear) and "wte" not in min(linear):
        assert int(torch.linalg.matrix_rank(delta.double(), rtol=1e-4)) == 2


def test_lora_without_peft_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"optrial\[lora\]"):
        run(fresh(), tmp_path, QUICK.model_copy(update={"lora_rank": 2}))


@pytest.mark.parametrize("is_tied", [False, True])
def test_only_new_rows_are_trained_at_first(is_tied: bool, tmp_path: Path) -> None:
    model = tied() if is_tied else fresh()
    before = weights(model)
    settings = QUICK.model_copy(update={"new_rows_first": 0.5, "epochs": 4})
    new_ids = [*tiny_models.tokenizer()("oe")["input_ids"], 250]
    with pytest.raises(InterruptedError):
        run(model, tmp_path, settings, new_ids=new_ids, on_stage=stops_at(3))
    rows = {"model.embed_tokens.weight"} | (set() if is_tied else {"lm_head.weight"})
    assert changed(before, model) == rows
    for name in rows:
        moved = (weights(model)[name] != before[name]).any(1).nonzero().flatten().tolist()
        assert set(moved) <= set(new_ids)
        assert len(moved) >= 2
    model = tied() if is_tied else fresh()
    run(model, tmp_path / "whole", settings, new_ids=new_ids)
    assert len(changed(before, model)) > 10


def test_new_rows_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="258 has no row"):
        run(fresh(), tmp_path, new_ids=[258])


# How it is trained


def test_a_step_is_one_adamw_step_on_the_mean_over_all_its_tokens(tmp_path: Path) -> None:
    settings = QUICK.model_copy(
        update={"epochs": 1, "batch_bytes": 10**6, "warm_up": 0.0, "pass_bytes": 150}
    )
    model = fresh()
    facts = run(model, tmp_path, settings)
    assert facts.num_steps == 1
    expected = fresh().train()
    choose_trained(expected, settings)
    total, count = torch.zeros(()), 0
    for ids_T in segments.rows(expected, tiny_models.tokenizer(), SEGMENTS):
        logits_TV = expected(input_ids=ids_T[None].long()).logits[0, :-1]
        nats_T = functional.cross_entropy(logits_TV, ids_T[1:].long(), reduction="none")
        total = total + nats_T.sum()
        count += len(ids_T) - 1
    (total / count).backward()
    assert facts.first_loss == pytest.approx(float(total.detach()) / count, rel=1e-5)
    assert facts.num_tokens == count
    optimizer = trainable.new_optimizer(expected, settings)
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    optimizer.step()
    for name, each in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), each, rtol=1e-3, atol=2e-4)


def test_the_passes_of_a_step_make_no_difference(tmp_path: Path) -> None:
    small, large = fresh(), fresh()
    run(small, tmp_path / "small", QUICK.model_copy(update={"pass_bytes": 1}))
    run(large, tmp_path / "large", QUICK.model_copy(update={"pass_bytes": 10**6}))
    costs = [bits_per_byte(m, tiny_models.tokenizer(), SEGMENTS) for m in (small, large, fresh())]
    assert costs[0] == pytest.approx(costs[1], rel=1e-3)
    assert costs[0] < 0.7 * costs[2]


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_model_is_trained_in_float32_and_keeps_its_dtype(
    autocast: bool, tmp_path: Path
) -> None:
    model = fresh().to(torch.bfloat16)
    # Each step changes less than bfloat16 can hold, all of them together more.
    settings = QUICK.model_copy(update={"learning_rate": 2e-4, "epochs": 6, "bfloat16": autocast})
    facts = run(model, tmp_path, settings)
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    stored = load_file(next(tmp_path.glob("checkpoint-*")) / "trained.safetensors")
    assert {each.dtype for each in stored.values()} == {torch.float32}
    assert facts.last_loss < facts.first_loss - 0.1


def test_one_seed_gives_one_result_and_leaves_everything_else_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    model, again, other = fresh("gpt2"), fresh("gpt2"), fresh("gpt2")
    model.config.use_cache = True
    reports: list[str] = []
    facts = run(model, tmp_path / "a", on_stage=reports.append)
    assert run(again, tmp_path / "b") == facts
    assert_equal(weights(model), weights(again))
    run(other, tmp_path / "c", QUICK.model_copy(update={"seed": 1}))
    assert changed(weights(model), other)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b", "c"]
    assert model.config.use_cache is True
    assert not model.training
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert torch.get_num_threads() == 1
    assert dict(os.environ) == environment
    assert reports[0].startswith(f"tuning: step 1 of {facts.num_steps}, loss ")
    assert " kB/s, " in reports[0]
    assert reports[0].endswith(" s to go")
    assert len(reports) == facts.num_steps
    assert capfd.readouterr() == ("", "")
    assert facts.text_bytes == facts.num_tokens


def test_a_loss_that_is_not_finite_stops_it(tmp_path: Path) -> None:
    model = fresh()
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 3] = math.nan
    with pytest.raises(InputError, match=r"learning_rate.*not finite at step 1"):
        run(model, tmp_path)


# Going on


@pytest.mark.parametrize(
    ("architecture", "update"),
    [
        ("llama", {"new_rows_first": 0.6}),
        ("llama", {"lora_rank": 2}),
        ("llama", {"bfloat16": True}),
        ("gpt2", {}),  # It has dropout, and ties its rows.
    ],
)
def test_an_interrupted_run_goes_on_and_ends_as_it_would_have(
    architecture: str, update: dict[str, object], tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update=update)
    whole, part, rest = fresh(architecture), fresh(architecture), fresh(architecture)
    facts = run(whole, tmp_path / "whole", settings, new_ids=[7, 101])
    with pytest.raises(InterruptedError):
        run(part, tmp_path / "part", settings, new_ids=[7, 101], on_stage=stops_at(4))
    assert [each.name for each in (tmp_path / "part").iterdir()] == ["checkpoint-2"]
    reports: list[str] = []
    resumed = run(rest, tmp_path / "part", settings, new_ids=[7, 101], on_stage=reports.append)
    assert reports[0] == "tuning: goes on from step 2"
    assert reports[1].startswith("tuning: step 3 of")
    assert resumed == facts.model_copy(update={"resumed_step": 2})
    assert_equal(weights(whole), weights(rest))
    # One that has ended is read back.
    last = fresh(architecture)
    run(last, tmp_path / "part", settings, new_ids=[7, 101], on_stage=stops_at(1))
    assert_equal(weights(whole), weights(last))


def test_a_checkpoint_of_another_run_or_half_of_one_is_not_gone_on_from(tmp_path: Path) -> None:
    run(fresh(), tmp_path)
    others = (
        (fresh(), QUICK.model_copy(update={"learning_rate": 0.02})),
        (tied(), QUICK),
    )
    for model, settings in others:
        reports: list[str] = []
        facts = run(model, tmp_path, settings, on_stage=reports.append)
        assert "incomplete or of another run" in reports[0]
        assert reports[1].startswith("tuning: step 1 of")
        assert facts.resumed_step == 0
    (folder,) = tmp_path.iterdir()
    (folder / "complete.json").unlink()
    assert run(tied(), tmp_path).resumed_step == 0


def test_checkpoints_hold_nothing_that_needs_unpickling(tmp_path: Path) -> None:
    run(fresh(), tmp_path)
    (folder,) = tmp_path.iterdir()
    assert sorted(each.name for each in folder.iterdir()) == [
        "complete.json",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trained.safetensors",
        "trainer_state.json",
    ]
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(folder / name, weights_only=True)


# Several processes


def worker(folder: str) -> None:
    """One of several processes, in a group as Ray Train sets it up."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    model = fresh()
    tuning.REPORT_EVERY_S = 0.0
    reports: list[str] = []
    work = Path(folder)
    facts = run(model, work / "work", on_stage=reports.append)
    rank = torch.distributed.get_rank()
    (work / f"{rank}.txt").write_text("\n".join([facts.model_dump_json(), *reports]))
    save_file(weights(model), work / f"{rank}.safetensors")
    assert torch.get_num_threads() == 1
    torch.distributed.destroy_process_group()


def test_two_processes_do_together_what_one_does(tmp_path: Path) -> None:
    one = fresh()
    facts = run(one, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    common.pop("OMP_NUM_THREADS", None)
    code = f"import test_adaptivocab_tuning as t; t.worker({str(tmp_path)!r})"
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [each.communicate(timeout=120)[1] for each in running]
    assert [each.returncode for each in running] == [0, 0], errors
    assert "Warning" not in "".join(errors)
    both = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert_equal(*both)
    start = weights(fresh())
    for name, each in weights(one).items():
        if torch.equal(each, start[name]):
            assert torch.equal(both[0][name], each)
        else:
            torch.testing.assert_close(both[0][name], each, rtol=1e-3, atol=1e-3)
    lines = [(tmp_path / f"{rank}.txt").read_text().splitlines() for rank in range(2)]
    found = TuningFacts.model_validate_json(lines[0][0])
    assert found.num_tokens == facts.num_tokens
    assert found.last_loss == pytest.approx(facts.last_loss, rel=1e-3)
    assert len(lines[0]) == 1 + facts.num_steps
    assert len(lines[1]) == 1
