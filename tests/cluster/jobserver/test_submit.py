"""What is checked of a submission before anything is uploaded, and what a job server may answer."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from program import Run
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster.jobserver import client as submit
from cluster.jobserver.client import JobServer, NoAnswerError, job_server_address
from cluster.jobserver.job_status import exit_code
from cluster.jobserver.working_directory import LIMIT_BYTES, working_directory
from jobs.submission import job_environment, submission, submission_id
from optim.errors import InputError

TOKEN = "a-token-that-nobody-may-see"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a spec, a model, prompts, and much that no job needs."""
    for name, text in {
        "trial.yaml": "",
        "prompts.jsonl": '{"prompt": "a"}\n',
        "my-model/config.json": "{}",
        "my-model/model.safetensors": "weights",
        "runs/larosa/artifact.json": "{}",
        "runs/old/manifest.json": "{}",
        ".git/HEAD": "ref",
        ".venv/bin/python": "",
        ".env": "SECRET=1",
        "__pycache__/x.pyc": "",
        "scorers.py": "",
        "notes/large.bin": "x",
        "notes/.gitignore": "large.*\n",
        "notes/kept.md": "x",
        ".gitignore": "my-model/\n*.log\n!kept.log\n",
        ".rayignore": "secrets.txt\n",
        "secrets.txt": "x",
        "a.log": "x",
        "kept.log": "x",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    write_spec(tmp_path)
    return tmp_path


def write_spec(folder: Path, name: str = "trial.yaml", **changes: Any) -> Path:
    spec = {
        "model": "./my-model",
        "datasets": ["prompts.jsonl"],
        "output": "s3://bucket/out",
    } | changes
    (folder / name).write_text(yaml.safe_dump(spec))
    return folder / name


def refused(project: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        submission(project / "trial.yaml", project, **options)
    return str(caught.value)


def test_what_a_spec_names_goes_along_whatever_is_ignored(project: Path) -> None:
    larosa = {"larosa": {"artifact": "runs/larosa", "sparsity": 0.4}}
    configurations = [{"name": "off"}, {"name": "on", "optimizations": [larosa]}]
    spec = write_spec(project, configurations=configurations)
    job = submission(spec, project)
    assert job.entrypoint == "python -m jobs evaluate trial.yaml"
    assert job.notes == ()
    files = {file.as_posix() for file in working_directory(project, job.needed).sizes}
    assert files == {
        ".gitignore",
        ".rayignore",
        "kept.log",
        "my-model/config.json",
        "my-model/model.safetensors",
        "notes/.gitignore",
        "notes/kept.md",
        "prompts.jsonl",
        "runs/larosa/artifact.json",
        "scorers.py",
        "trial.yaml",
    }


def test_the_package_is_the_files_and_equal_for_equal_ones(project: Path, tmp_path: Path) -> None:
    found = working_directory(project, [PurePosixPath("my-model")])
    for name in ("one.zip", "two.zip"):
        found.pack(tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert sorted(archive.namelist()) == sorted(map(str, found.sizes))
        assert archive.read("my-model/model.safetensors") == b"weights"


def test_too_large_a_folder_is_refused_and_says_what_is_large(run: Run, project: Path) -> None:
    for name, share in {"data/2026/all.jsonl": 0.75, "my-model/model.safetensors": 0.25}.items():
        file = project / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            opened.truncate(int(LIMIT_BYTES * share))  # sparse: takes no room
    address = ("--address", "http://127.0.0.1:9")
    code, _, err = run("submit", project / "trial.yaml", "--working-dir", project, *address)
    assert code == 2
    assert "comes to 512.0 MiB" in err
    assert "data/2026 384.0 MiB, my-model/model.safetensors 128.0 MiB" in err
    assert ".rayignore" in err


def test_links_are_followed_and_never_in_circles(project: Path, tmp_path: Path) -> None:
    (project / "elsewhere").symlink_to(project / "my-model")
    (project / "notes" / "up").symlink_to(project)
    files = {file.as_posix() for file in working_directory(project).sizes}
    assert "elsewhere/config.json" in files
    assert not any(file.startswith("notes/up/") for file in files)


def test_a_file_that_cannot_be_read_is_named(project: Path) -> None:
    (project / "broken").symlink_to(project / "none")
    assert "broken" not in {str(file) for file in working_directory(project).sizes}
    with pytest.raises(InputError, match="broken"):
        working_directory(project, [PurePosixPath("broken")])


@pytest.mark.parametrize("output", ["runs/mine", "./out", "file://out", "memory://out"])
def test_an_output_that_would_be_lost_is_refused(project: Path, output: str) -> None:
    write_spec(project, output=output)
    assert "--output" in refused(project)
    job = submission(project / "trial.yaml", project, output="gs://bucket/x")
    assert job.entrypoint.endswith("evaluate trial.yaml --output gs://bucket/x")


def test_absolute_places_are_told_and_not_refused(project: Path) -> None:
    write_spec(project, model="/models/llama", datasets=["~/prompts.jsonl"], output="/shared/out")
    job = submission(project / "trial.yaml", project)
    assert [note.partition(":")[0] for note in job.notes] == [
        "model",
        "datasets[0].path",
        "output",
    ]
    assert job.needed == (PurePosixPath("trial.yaml"),)


def test_paths_that_lead_out_or_nowhere_are_refused(project: Path, tmp_path: Path) -> None:
    write_spec(project, model="../other")
    assert "leads out of the working directory" in refused(project)
    write_spec(project, datasets=["none.jsonl"])
    assert "datasets[0].path: none.jsonl: there is no such file" in refused(project)
    write_spec(project, datasets=["notes/../prompts.jsonl"])
    assert PurePosixPath("prompts.jsonl") in submission(project / "trial.yaml", project).needed
    (project / "sub").mkdir()
    with pytest.raises(InputError, match="does not lie in the working directory"):
        submission(write_spec(project), project / "sub")
    with pytest.raises(InputError, match="no such folder"):
        submission(project / "trial.yaml", project / "none")


NOWHERE = ("--address", "http://127.0.0.1:9")


def test_a_spec_above_the_working_directory_is_refused_here(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the job, where nothing is at that place."""
    inner = project / "sub"
    inner.mkdir()
    monkeypatch.chdir(inner)
    for spec in ("../trial.yaml", f"{inner}/../trial.yaml"):
        code, _, err = run("submit", spec, *NOWHERE)
        assert code == 2
        assert "the spec does not lie in the working directory" in err
        assert "Traceback" not in err
    found = submission(Path("../sub/../trial.yaml"), Path(".."))
    assert found.spec == "trial.yaml", "it is there, whatever way leads to it"
    (inner / "linked.yaml").symlink_to(project / "trial.yaml")
    (inner / "my-model").symlink_to(project / "my-model")
    (inner / "prompts.jsonl").symlink_to(project / "prompts.jsonl")
    assert submission(Path("linked.yaml"), Path(".")).spec == "linked.yaml"


def test_a_file_of_an_option_is_refused_or_told_too(run: Run, project: Path) -> None:
    claims = project.parent / "claims.yaml"
    claims.write_text("claims: []\n")
    assert "leads out of the working directory" in refused(
        project, options=["--claims", f"../{claims.name}"]
    )
    job = submission(project / "trial.yaml", project, options=[f"--claims={claims}"])
    assert f"{claims} is not uploaded: every node needs it at that place" in job.notes
    claims.unlink()


@pytest.mark.parametrize("place", ["", "my-model"])
def test_a_file_whose_name_is_no_text(run: Run, project: Path, place: str) -> None:
    folder = os.fsencode(project / place)
    with open(folder + b"/bad\xff", "wb"):
        pass
    words = ("submit", project / "trial.yaml", "--working-dir", project, *NOWHERE)
    code, out, err = run(*words)
    assert code == 2
    assert "bad\\xff: cannot be uploaded: its name is not UTF-8" in err.replace("\n", "")
    assert "Traceback" not in out + err
    if not place:  # what is needed goes along whatever is ignored
        (project / ".rayignore").write_text("bad*\n")
        assert "no job server answers" in run(*words)[2]


def test_a_file_that_goes_before_it_is_packed(project: Path, tmp_path: Path) -> None:
    packed = working_directory(project)
    (project / "scorers.py").unlink()
    with pytest.raises(InputError, match=r"scorers\.py: cannot be uploaded: No such file"):
        packed.pack(tmp_path / "package.zip")


def test_hub_ids_and_what_ships_are_no_files(project: Path) -> None:
    write_spec(project, model="org/model", datasets=["org/data", "demo/language"])
    job = submission(project / "trial.yaml", project)
    assert job.needed == (PurePosixPath("trial.yaml"),)
    assert job.notes == ()


def test_a_bad_spec_is_one_error(run: Run, project: Path) -> None:
    write_spec(project, sedes=3)
    code, _, err = run("submit", project / "trial.yaml", "--working-dir", project)
    assert code == 2
    assert err.count("error:") == 1
    assert "sedes" in err
    write_spec(
        project, configurations=[{"name": "off"}, {"name": "on", "optimizations": ["larsoa"]}]
    )
    assert "larsoa" in refused(project)


def test_options_are_quoted_and_their_files_go_along(project: Path) -> None:
    (project / "runs" / "my claims.yaml").write_text("claims: []\n")
    options = ["--claims", "runs/my claims.yaml", "--max-row-errors", "3"]
    job = submission(project / "trial.yaml", project, options=options)
    assert job.entrypoint.endswith("--claims 'runs/my claims.yaml' --max-row-errors 3")
    assert PurePosixPath("runs/my claims.yaml") in job.needed


def test_options_that_evaluate_does_not_know_are_refused_here(run: Run, project: Path) -> None:
    words = ("submit", project / "trial.yaml", "--working-dir", project, "--")
    code, _, err = run(*words, "--clams", "authors")
    assert code == 2
    assert "--clams" in err
    code, _, err = run(*words, "--output", "s3://bucket/x")
    assert code == 2
    assert "before `--`" in err


def test_variables_of_a_job(run: Run, project: Path) -> None:
    found = job_environment(["A=1=2", "HOME", "B="], {"HOME": "/root"})
    assert found == {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "A": "1=2", "HOME": "/root", "B": ""}
    code, out, err = run(
        "submit", project / "trial.yaml", "--working-dir", project, "--env", f"A B={TOKEN}"
    )
    assert code == 2
    assert "--env" in err
    assert TOKEN not in out + err
    with pytest.raises(InputError, match="NONE is not set here"):
        job_environment(["NONE"], {})


def test_ids(project: Path) -> None:
    made = {submission_id(project / "my trial!.yaml") for _ in range(5)}
    assert len(made) == 5
    assert all(each.startswith("optrial-my-trial-") for each in made)
    assert submission_id(project, "mine.1") == "mine.1"
    for bad in ("", "a b", "../x", "x" * 101):
        with pytest.raises(InputError, match="submission-id"):
            submission_id(project, bad)


def test_whose_address_counts() -> None:
    variables = {"RAY_API_SERVER_ADDRESS": "http://b:1/", "RAY_ADDRESS": "http://c:1"}
    assert job_server_address("https://a:1", variables) == "https://a:1"
    assert job_server_address(None, variables) == "http://b:1"
    assert job_server_address(None, {"RAY_ADDRESS": "http://c:1"}) == "http://c:1"
    for variables in ({}, {"RAY_ADDRESS": "head:6379"}, {"RAY_ADDRESS": "ray://head:10001"}):
        with pytest.raises(InputError, match="no job server is named"):
            job_server_address(None, variables)
    with pytest.raises(InputError, match="expected http://HOST:PORT, got `head:8265`"):
        job_server_address("head:8265", {})


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 1),
    ],
)
def test_exit_codes(status: str, driver: int | None, code: int) -> None:
    job = JobDetails(
        type=JobType.SUBMISSION,
        status=JobStatus(status),
        entrypoint="x",
        driver_exit_code=driver,
    )
    assert exit_code(job) == code


@contextmanager
def serving(answer: Callable[[str], tuple[int, str]]) -> Iterator[str]:
    """The address of a server that gives each path the answer that a function has for it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, text = answer(self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_PUT = do_GET

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def versioned(answer: tuple[int, str]) -> Callable[[str], tuple[int, str]]:
    version = json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})
    return lambda path: (200, version) if path == "/api/version" else answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, "Unauthorized"), "the cluster wants a token (401), and RAY_AUTH_MODE is"),
        ((403, "Forbidden"), "the cluster refuses this token (403)"),
        ((404, "nothing here"), "what answers is not Ray's job server"),
        ((200, "<html>"), "what answers is not Ray's job server"),
        ((502, "bad gateway"), "what answers is not Ray's job server"),
    ],
)
def test_answers_of_something_else(run: Run, answer: tuple[int, str], said: str) -> None:
    with serving(lambda path: answer) as address:
        code, out, err = run("status", "--address", address)
    assert code == 2
    assert err.startswith("error:")
    assert err.count("error:") == 1
    assert said in err
    assert "Traceback" not in out + err


def test_an_unknown_job_is_one_error(run: Run) -> None:
    with serving(versioned((404, "Job x does not exist"))) as address:
        for words in (["status"], ["logs"], ["stop"], ["logs", "--follow"]):
            code, _, err = run(*words, "x", "--address", address)
            assert code == 2
            assert "the cluster knows no such job" in err
            assert "Traceback" not in err


def test_an_address_wins_over_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:10")
    with serving(versioned((200, "[]"))) as address:
        assert run("status", "--address", address)[:2] == (0, "no jobs of trials\n")
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:10"


def test_nobody_there_is_said_at_once(run: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        code, _, err = run("status", "--address", address)
    assert code == 2
    assert "no job server answers" in err
    assert "--dashboard-host" in err


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert submit.CONNECT_WITHIN_S + submit.ANSWER_WITHIN_S <= 15
    monkeypatch.setattr(submit, "ANSWER_WITHIN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(NoAnswerError, match="no job server answers"):
            JobServer(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 10


def test_a_job_that_does_not_stop_is_said() -> None:
    running = {"type": "SUBMISSION", "status": "RUNNING", "entrypoint": "x"}
    answers = {
        "/api/version": {"version": "4", "ray_version": "2.60.0", "ray_commit": "x"},
        "/api/jobs/x": running,
        "/api/jobs/x/stop": {"stopped": True},
    }
    with (
        serving(lambda path: (200, json.dumps(answers[path]))) as address,
        pytest.raises(InputError, match="has not stopped within 1 s"),
    ):
        JobServer(address).stop("x", within_s=1.0)
