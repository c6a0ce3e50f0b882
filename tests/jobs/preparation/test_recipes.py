"""`--reuse`: an artifact that is there is taken where it was made by the same recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.plan import ModelSource
from jobs.data.texts import Reading
from jobs.preparation.prepare import Task, recipe
from jobs.preparation.recipes import is_made, is_same, recipe_file, write_recipe
from optim.errors import InputError


def task(out: Path, **settings: object) -> Task:
    source = ModelSource(path="demo")
    return Task("larosa", dict(settings), source, ["demo/training"], Reading(), str(out))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    out = tmp_path / "artifact"
    out.mkdir()
    (out / "larosa.json").write_text("{}")
    write_recipe(str(out), recipe(task(out, sequences=8)))
    return out


def test_the_same_recipe_is_known_again(made: Path) -> None:
    assert is_made(str(made), recipe(task(made, sequences=8)))


def test_what_is_not_there_or_empty_is_to_be_made(tmp_path: Path) -> None:
    assert not is_made(str(tmp_path / "none"), recipe(task(tmp_path)))
    assert not is_made(str(tmp_path), recipe(task(tmp_path)))


def test_another_recipe_is_refused_with_the_difference(made: Path) -> None:
    with pytest.raises(InputError, match="was made otherwise: settings") as caught:
        is_made(str(made), recipe(task(made, sequences=9)))
    assert "'sequences': 8" in str(caught.value)
    assert "'sequences': 9" in str(caught.value)


def test_where_it_came_from_decides_and_where_it_lies_does_not(made: Path, tmp_path: Path) -> None:
    moved = made.rename(tmp_path / "moved")
    recipe_file(str(made)).rename(recipe_file(str(moved)))
    assert is_made(str(moved), recipe(task(moved, sequences=8)))
    other = task(moved, sequences=8)._replace(data=["other.txt"])
    with pytest.raises(InputError, match="data"):
        is_made(str(moved), recipe(other))


def test_an_artifact_of_unknown_making_is_refused(made: Path) -> None:
    recipe_file(str(made)).unlink()
    with pytest.raises(InputError, match=r"artifact\.recipe\.json"):
        is_made(str(made), recipe(task(made)))


def test_a_setting_that_is_newer_than_the_artifact_was_at_its_default(made: Path) -> None:
    known = json.loads(recipe_file(str(made)).read_text())
    del known["settings"]["allocation"]
    recipe_file(str(made)).write_text(json.dumps(known))
    assert is_made(str(made), recipe(task(made, sequences=8)))
    with pytest.raises(InputError, match="allocation"):
        is_made(str(made), recipe(task(made, sequences=8, allocation="sites")))


def test_asking_whether_it_is_the_same_is_no_refusal(made: Path, tmp_path: Path) -> None:
    assert is_same(str(made), recipe(task(made, sequences=8)))
    assert not is_same(str(made), recipe(task(made, sequences=9)))
    assert not is_same(str(tmp_path / "none"), recipe(task(tmp_path)))
