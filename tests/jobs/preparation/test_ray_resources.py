"""What a preparation can ask of the Ray task that it runs in, and a preparation that does."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Run
from safetensors.torch import load_file
from test_adaptivocab_embeddings import TEXTS, model
from test_adaptivocab_preparation import QUICK, contents

from cluster.plan import ModelSource
from jobs.data.texts import Reading
from jobs.preparation.prepare import Task, prepare
from jobs.preparation.ray_tasks import RayResources
from optim.adaptivocab.artifact import Artifact
from optim.errors import InputError
from optim.resources import Call, OnStage

pytestmark = pytest.mark.usefixtures("ray_cluster")

PATIENCE_S = 60.0


def in_task(calls: list[Call[Any]], cpus: int, stop_at: str | None = None) -> Any:
    """Results, stages, and the process of a task that has calls made for it."""
    import ray

    return ray.get(ray.remote(_task).options(num_cpus=cpus).remote(calls, cpus, stop_at))


def _task(calls: list[Call[Any]], cpus: int, stop_at: str | None) -> Any:
    stages: list[str] = []

    def on_stage(stage: str) -> None:
        stages.append(stage)
        if stage == stop_at:
            raise InterruptedError

    results = RayResources(Reading(), cpus, 0).run(calls, on_stage)
    return results, stages, os.getpid()


def meet(folder: Path, number: int, on_stage: OnStage) -> tuple[int, int, int]:
    """Ends only once the other one of two has begun, and the first one last."""
    (folder / f"begun-{number}").touch()
    wait_for(folder / f"begun-{1 - number}")
    on_stage(f"call {number} met the other")
    if number == 0:
        wait_for(folder / "ended-1")
    (folder / f"ended-{number}").touch()
    return number, os.getpid(), torch.get_num_threads()


def wait_for(path: Path) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > end_s:
            raise TimeoutError(path)
        time.sleep(0.02)


def square(number: int, on_stage: OnStage) -> int:
    on_stage(f"squaring {number}")
    return number * number


def refuse(folder: Path, on_stage: OnStage) -> None:
    wait_for(folder / "begun-0")
    raise InputError("cannot be", source="a file", field="--data", mend="Mend it")


def report_on(folder: Path, number: int, on_stage: OnStage) -> None:
    """Reports until somebody stops it."""
    (folder / f"begun-{number}").touch()
    try:
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            on_stage("both at it" if (folder / f"begun-{1 - number}").exists() else "at it")
            time.sleep(0.05)
    except InterruptedError:
        time.sleep(0.5)
        (folder / f"stopped-{number}").touch()
        raise


# --- calls ---------------------------------------------------------------------------------------


def test_calls_are_made_at_once_and_their_results_are_in_order(tmp_path: Path) -> None:
    results, stages, own = in_task([partial(meet, tmp_path, n) for n in (0, 1)], cpus=2)
    assert [number for number, *_ in results] == [0, 1]
    assert len({own, *(pid for _, pid, _ in results)}) == 3, "each has a process of its own"
    assert [threads for *_, threads in results] == [1, 1]
    assert sorted(stages) == ["call 0 met the other", "call 1 met the other"]


def test_there_may_be_more_calls_than_processes() -> None:
    numbers = list(range(7))
    results, stages, _ = in_task([partial(square, n) for n in numbers], cpus=2)
    assert results == [n * n for n in numbers]
    assert sorted(stages) == [f"squaring {n}" for n in numbers]


@pytest.mark.parametrize(("cpus", "num_calls"), [(1, 3), (3, 1), (2, 0)])
def test_without_others_to_wait_for_calls_are_made_in_place(cpus: int, num_calls: int) -> None:
    calls = [_own_process] * num_calls
    results, _, own = in_task(list(calls), cpus=cpus)
    assert results == [own] * num_calls


def _own_process(on_stage: OnStage) -> int:
    return os.getpid()


def test_threads_are_shared_among_the_calls() -> None:
    results, *_ = in_task([_num_threads] * 2, cpus=4)
    assert results == [2, 2]


def _num_threads(on_stage: OnStage) -> int:
    return torch.get_num_threads()


def test_a_gpu_is_for_one_call() -> None:
    assert RayResources(Reading(), 4, 1).num_processes == 1
    assert RayResources(Reading(), 4, 0).num_processes == 4


def test_bad_input_ends_all_calls_and_comes_back_as_it_was(tmp_path: Path) -> None:
    from ray.exceptions import RayTaskError

    calls: list[Call[Any]] = [partial(report_on, tmp_path, 0), partial(refuse, tmp_path)]
    with pytest.raises(RayTaskError) as caught:
        in_task(calls, cpus=2)
    error = caught.value.cause
    assert isinstance(error, InputError)
    assert (error.problem, error.source, error.field, error.mend) == (
        "cannot be", "a file", "--data", "Mend it",
    )  # fmt: skip
    assert (tmp_path / "stopped-0").exists(), "it was not waited for"


def test_an_interruption_ends_all_calls(tmp_path: Path) -> None:
    from ray.exceptions import RayTaskError

    calls: list[Call[Any]] = [partial(report_on, tmp_path, number) for number in (0, 1)]
    with pytest.raises(RayTaskError) as caught:
        in_task(calls, cpus=2, stop_at="both at it")
    assert isinstance(caught.value.cause, InterruptedError)
    assert all((tmp_path / f"stopped-{number}").exists() for number in (0, 1))


def test_other_corpora_are_read_as_data_is(tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text(json.dumps({"text": "t", "body": "b"}) + "\n")
    assert list(RayResources(Reading(), 1, 0).read(str(file))) == ["t"]
    assert list(RayResources(Reading("body"), 1, 0).read(str(file))) == ["b"]
    with pytest.raises(InputError, match="no such file") as caught:
        list(RayResources(Reading(), 1, 0).read(str(tmp_path / "none.jsonl")))
    assert caught.value.field == "--protect"


# --- a preparation -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and texts for it."""
    made = tmp_path_factory.mktemp("ray")
    lm = model("llama")
    lm.model.save_pretrained(made / "model")
    lm.tokenizer.save_pretrained(made / "model")
    lines = (json.dumps({"text": text}) + "\n" for text in TEXTS)
    (made / "texts.jsonl").write_text("".join(lines))
    other = (json.dumps({"text": text[::-1]}) + "\n" for text in TEXTS)
    (made / "other.jsonl").write_text("".join(other))
    return made


def task(folder: Path, out: Path, *, cpus: int, **changes: object) -> Task:
    return Task(
        "adaptivocab",
        QUICK | changes,
        ModelSource(path=str(folder / "model")),
        [str(folder / "texts.jsonl")],
        Reading(),
        str(out),
        cpus=cpus,
    )


def test_a_preparation_with_two_processes_is_as_one_with_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    stages: list[str] = []
    protect = (str(folder / "other.jsonl"),)
    made = prepare(task(folder, out, cpus=2, replace=60, protect=protect), on_stage=stages.append)
    artifact = Artifact.open(out)
    assert artifact.fingerprint == made
    assert artifact.manifest.off_domain is not None
    assert "measuring bits per byte after tuning" in stages
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    alone = tmp_path / "alone"
    prepare(task(folder, alone, cpus=1, replace=60, protect=protect))
    one, two = contents(alone), contents(out)
    assert one.keys() == two.keys()
    for name in ("tokens.json", "tokenizer.json", "tuned/tokenizer.json"):
        assert one[name] == two[name]
    for name in ("model.safetensors", "tuned/model.safetensors"):
        close(load_file(alone / name), load_file(out / name))


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, each in one.items():
        torch.testing.assert_close(each, two[name], rtol=1e-3, atol=1e-4)


def test_an_interrupted_preparation_leaves_nothing_but_checkpoints(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "artifact"
    longer = task(folder, out, cpus=2, expand=40, tune_mib=0.03, epochs=4, checkpoint_steps=5)

    def interrupt(stage: str) -> None:
        if "tuning: step" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(longer, on_stage=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [".artifact.tuning"]
    stages: list[str] = []
    assert prepare(longer, on_stage=stages.append) == Artifact.open(out).fingerprint
    assert [stage for stage in stages if "goes on from step" in stage]
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_bad_input_within_the_task_comes_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        prepare(task(folder, tmp_path / "a", cpus=2, protect=(str(tmp_path / "none.jsonl"),)))
    assert caught.value.field == "--protect"
    with pytest.raises(InputError, match="cannot be replaced") as caught:
        prepare(task(folder, tmp_path / "a", cpus=2, replace=9999))
    assert caught.value.field == "--replace"
    with pytest.raises(
        InputError, match="workers of 1 CPU are asked for, and 3 are free"
    ) as caught:
        prepare(task(folder, tmp_path / "a", cpus=1, expand=10, workers=4))
    assert caught.value.field == "--workers"
    assert not list(tmp_path.glob("a*"))


def test_the_command_line(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, err = run(
        *("prepare", "adaptivocab", "--model", "demo", "--data", folder / "texts.jsonl"),
        *("--expand", "200", "--out", "made", "--cpus", "2", "--corpus-mib", "0.1"),
        *("--tune-mib", "0.002", "--segment-bytes", "256", "--longest", "4"),
        *("--no-control", "--protect", folder / "other.jsonl"),
    )
    assert code == 0, err
    assert err == ""
    artifact = Artifact.open(tmp_path / "made")
    assert f"made is ready ({artifact.fingerprint[:12]})." in printed
    assert "optimizations: [{adaptivocab: {artifact: made}}]" in " ".join(printed.split())
    assert artifact.manifest.num_new == 200
    assert artifact.manifest.settings["protect"] == [str(folder / "other.jsonl")]
    assert artifact.manifest.control is None
    assert "making rows for the new tokens" in printed
    code, printed, err = run(
        *("prepare", "adaptivocab", "--model", "demo", "--data", folder / "texts.jsonl"),
        *("--expand", "20", "--replace", "20", "--out", "other"),
    )
    assert code == 2
    assert "replace or expand, not both" in err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_two_processes_of_ray_train_tune_as_one(folder: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "artifact", tmp_path / "alone"
    stages: list[str] = []
    changes = {"expand": 20, "tune_mib": 0.002, "learning_rate": 1e-3}
    prepare(task(folder, out, cpus=1, workers=2, **changes), on_stage=stages.append)
    assert stages.count("tuning with 2 workers") == 2, "the adapted model and the control"
    prepare(task(folder, alone, cpus=1, **changes))
    many, one = (Artifact.open(each).manifest for each in (out, alone))
    for name in ("model.safetensors", "tuned/model.safetensors"):
        close(load_file(alone / name), load_file(out / name))
    for several, single in ((many.tuning, one.tuning), (many.control, one.control)):
        assert several is not None
        assert single is not None
        assert several["last_loss"] == pytest.approx(single["last_loss"], rel=1e-4)
        assert several["num_steps"] == single["num_steps"]
        assert several["num_tokens"] == single["num_tokens"]
    assert many.quality.adapted_tuned == pytest.approx(one.quality.adapted_tuned, rel=1e-4)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["alone", "artifact"]


@pytest.mark.slow
def test_bad_input_within_a_process_of_ray_train_comes_back_as_it_was(tmp_path: Path) -> None:
    import ray
    from ray.exceptions import RayTaskError

    (tmp_path / "begun-0").touch()
    with pytest.raises(RayTaskError) as caught:
        ray.get(ray.remote(_train).remote(partial(refuse, tmp_path)))
    assert isinstance(caught.value.cause, InputError)
    assert caught.value.cause.field == "--data"


def _train(call: Call[None]) -> None:
    RayResources(Reading(), 1, 0).train(call, 2, lambda stage: None)
