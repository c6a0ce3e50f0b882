"""Lists on the command line: repeated, or separated by spaces or commas."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from program import Run

import jobs.__main__ as program
from jobs.cli.list_options import ListCommand
from jobs.cli.prepare import command
from optim.registry import preparations


def parsed(words: str, *path: str) -> dict[str, Any]:
    """The values that a command gets."""
    found: Any = typer.main.get_command(program.app)
    for name in path:
        found = found.commands[name]
    context: Any = found.make_context(path[-1], words.split())
    return dict(context.params)


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of `prepare`, which are made only where one is asked for."""
    monkeypatch.setattr(program, "prepare_app", program.ListApp())
    for name, kind in preparations().items():
        program.prepare_app.command(name)(command(name, kind))
    app = program.ListApp()
    app.add_typer(program.prepare_app, name="prepare")
    monkeypatch.setattr(program, "app", app)


@pytest.mark.usefixtures("prepare")
@pytest.mark.parametrize(
    "levels",
    ["--levels 0.25 0.4 0.5", "--levels 0.25,0.4,0.5", "--levels 0.25, 0.4, 0.5",
     "--levels 0.25 --levels 0.4 --levels=0.5", "--levels=0.25,0.4 0.5"],
)  # fmt: skip
def test_levels(levels: str) -> None:
    for words in (
        f"--model demo --data a b {levels} --out x",
        f"--data a,b --model demo --out x {levels}",
    ):
        found = parsed(words, "prepare", "larosa")
        assert found["levels"] == [0.25, 0.4, 0.5]
        assert found["data"] == ["a", "b"]
        assert found["out"] == "x"


def test_words_that_are_arguments_stay_so() -> None:
    """Before the list and behind it."""
    for words in ("out --scorer exact numeric", "--scorer exact numeric out",
                  "--scorer exact,numeric out", "out --scorer exact --scorer=numeric"):  # fmt: skip
        assert parsed(words, "score") == {"directory": "out", "scorer": ["exact", "numeric"]}
    assert parsed("--scorer exact out", "score")["directory"] == "out"
    assert parsed("--scorer exact -- out", "score") == {"directory": "out", "scorer": ["exact"]}
    found = parsed("trial.yaml --env A=1,2 --env B -- --claims authors", "submit")
    assert found["env"] == ["A=1,2", "B"]
    assert found["options"] == ["--claims", "authors"]


def test_what_holds_a_comma_itself_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a,b.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    found = parsed("--model demo --prompts a,b.jsonl s3://b/x,y --corpus c,d", "compare")
    assert found["prompts"] == ["a,b.jsonl", "s3://b/x,y"]
    assert found["corpus"] == ["c", "d"]


def test_pairs(run: Run) -> None:
    assert (
        parsed("--tokens 10,20", "explain")["tokens"]
        == parsed("--tokens 10 20", "explain")["tokens"]
    )
    assert run("explain", "--tokens", "10,20")[0] == 0
    assert run("explain", "--tokens", "10")[0] == 2


def test_what_is_too_much_is_still_an_error(run: Run) -> None:
    code, _, err = run("score", "a", "b", "--scorer", "exact")
    assert code == 2
    assert "unexpected extra argument" in " ".join(err.split()).lower()


def test_every_command_takes_lists_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["optrial"])
    commands: Any = typer.main.get_command(program.app)
    for name, each in commands.commands.items():
        assert name == "prepare" or isinstance(each, ListCommand), name
