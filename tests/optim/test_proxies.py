"""A proxy that stands between is named by its variable, wherever something is not reached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from program import Run

from optim.model import resolve
from optim.proxies import proxy_between, proxy_words

PROXY = "http://somebody:a-secret@127.0.0.1:9"
HOST = "somewhere.invalid"


@pytest.fixture(autouse=True)
def _none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name)


def test_whose_proxy_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_between(f"http://{HOST}") is None
    monkeypatch.setenv("ALL_PROXY", PROXY)
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    assert proxy_between(f"http://{HOST}:80/x") == "ALL_PROXY"
    assert proxy_between(f"https://{HOST}") == "HTTPS_PROXY"
    assert proxy_between(f"s3://{HOST}") is None
    monkeypatch.setenv("https_proxy", "")
    assert proxy_between(f"https://{HOST}") == "ALL_PROXY"
    monkeypatch.setenv("NO_PROXY", f"localhost,.{HOST.partition('.')[2]}")
    assert proxy_between(f"https://{HOST}") is None
    monkeypatch.delenv("NO_PROXY")
    assert proxy_words(f"https://{HOST}", ValueError("another thing")) == ""
    assert f"add {HOST} to NO_PROXY" in proxy_words(f"https://{HOST}", ConnectionError())


@pytest.fixture
def said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The one error of a command with both proxies set."""

    def call(*words: str | Path) -> str:
        monkeypatch.setenv("HTTP_PROXY", PROXY)
        monkeypatch.setenv("HTTPS_PROXY", PROXY)
        code, out, err = run(*words)
        assert code == 2, out + err
        assert "Traceback" not in err
        assert "a-secret" not in out + err
        return " ".join(err.split())

    return call


def test_between_here_and_a_job_server(said: Callable[..., str]) -> None:
    text = said("status", "--address", f"http://{HOST}:8265")
    assert "no job server answers" in text
    assert f"the proxy in HTTP_PROXY: where that is wrong, add {HOST} to NO_PROXY" in text


def test_between_here_and_a_file(said: Callable[..., str], tmp_path: Path) -> None:
    spec = tmp_path / "trial.yaml"
    spec.write_text(
        f"model: demo\ndatasets: [{{path: 'https://{HOST}/x.jsonl'}}]\n"
        f"configurations: [{{name: one}}]\noutput: {tmp_path / 'out'}\n"
    )
    text = said("plan", spec, "--pilot-prompts", "0")
    assert f"https://{HOST}/x.jsonl: cannot be read" in text
    assert f"the proxy in HTTPS_PROXY: where that is wrong, add {HOST} to NO_PROXY" in text


def test_between_here_and_a_bucket(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    text = said("report", "s3://a-bucket-of-this-test/x")
    assert "cannot be reached" in text
    assert "manifest.json: not" not in text
    assert f"the proxy in HTTP_PROXY: where that is wrong, add {HOST} to NO_PROXY" in text


def test_between_here_and_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fails(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    monkeypatch.setenv("https_proxy", PROXY)
    with pytest.raises(ValueError, match=r"proxy in https_proxy: .* add huggingface\.co to NO"):
        resolve("somebody/something")
