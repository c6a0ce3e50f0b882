"""A trial of LaRoSA end to end: what its cells say, how it resumes, which artifacts it refuses."""

from __future__ import annotations

import html
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import larosa_models
import pytest
import tiny_models
import yaml

from cluster.plan import Kind
from cluster.results.results import Results
from cluster.results.schema import deterministic_columns
from cluster.results.verification import faults_of
from cluster.scheduling.scheduler import Outcome
from jobs.queries.cells import CELLS, cells_table
from jobs.report.report_data import report_data
from jobs.trial.evaluate import evaluate
from optim.errors import InputError
from optim.larosa.artifact import Artifact
from optim.larosa.preparation import LarosaPreparation
from optim.model import LanguageModel, fingerprint, load

pytestmark = pytest.mark.usefixtures("ray_cluster")

NOTE = "only <h2> is rotated"
SEEDS, PROMPTS, SHARDS = 2, 10, 3
CONFIGURATIONS = {f"{kind}.batch_size-{size}" for kind in ("dense", "larosa") for size in (1, 2)}
MASKED = {name for name in CONFIGURATIONS if name.startswith("larosa")}


def make_artifact(lm: LanguageModel, out: Path, variant: str = "larosa+") -> None:
    preparation = LarosaPreparation.model_validate(
        {"variant": variant, "sequences": 6, "tokens": 64,
         "held_out": 1, "levels": (0.5,), "break_even": False}
    )  # fmt: skip
    preparation.run(lm, larosa_models.TEXTS, out, source="test")


@dataclass(frozen=True)
class Trial:
    """A dense and a sparse configuration at two batch sizes, on the same prompts."""

    folder: Path
    lm: LanguageModel
    model: Path

    @property
    def artifact(self) -> Path:
        return self.folder / "artifact"

    def run(self, output: Path, *, artifact: Path | None = None, workers: int = 1) -> Run:
        """Run it, or what is missing of it."""
        settings = {"artifact": str(artifact or self.artifact), "sparsity": 0.5, "sparse_rows": 2}
        spec = {
            "model": str(self.model),
            "datasets": [{"path": str(self.folder / "prompts.jsonl"), "shards": SHARDS}],
            "configurations": [
                {"name": "dense"},
                {"name": "larosa", "optimizations": [{"larosa": settings}]},
            ],
            "factors": {"batch_size": [1, 2]},
            "seeds": SEEDS,
            "generation": {"max_new_tokens": 8, "temperature": 0.8},
            "workers": workers,
            "baseline_check": False,
            "output": str(output),
        }
        path = self.folder / "trial.yaml"
        path.write_text(yaml.safe_dump(spec))
        stages: list[str] = []
        results, outcome = evaluate(path, on_stage=stages.append)
        return Run(results, outcome, stages)


@dataclass(frozen=True)
class Run:
    """What a run left, and what it came to."""

    results: Results
    outcome: Outcome
    stages: list[str] = field(repr=False)

    def rows(self, kind: Kind) -> list[dict[str, Any]]:
        return self.results.read(kind).to_pylist()

    def cells(self, kind: Kind) -> list[dict[str, Any]]:
        return [row for row in cells_table(self.results).to_pylist() if row["kind"] == kind]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Trial:
    folder = tmp_path_factory.mktemp("larosa-trial")
    path = str(tiny_model_folder)
    made = Trial(folder, load(path, fingerprint=fingerprint(path)), tiny_model_folder)
    make_artifact(made.lm, made.artifact)
    file = made.artifact / "larosa.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"notes": [NOTE]}))
    prompts = [
        {"id": f"p{i}", "prompt": prompt, "target": f" target {i}"}
        for i, prompt in enumerate(tiny_models.prompts(PROMPTS, seed=5))
    ]
    lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(lines)
    return made


@pytest.fixture(scope="module")
def ran(trial: Trial) -> Run:
    return trial.run(trial.folder / "out")


@pytest.fixture
def elsewhere(trial: Trial, tmp_path: Path) -> Iterator[Path]:
    """Where the artifact lies for the length of a test; nothing is where it was."""
    moved = trial.artifact.rename(tmp_path / "elsewhere")
    yield moved
    shutil.rmtree(trial.artifact, ignore_errors=True)
    moved.rename(trial.artifact)


def written(folder: Path) -> dict[Path, int]:
    """Everything in a folder, and when it was written."""
    # Not of `_tmp`, through which the lock of whoever looks goes.
    paths = (path for path in folder.rglob("*") if path.name != "_tmp")
    return {path: path.stat().st_mtime_ns for path in paths}


# --- what is recorded ----------------------------------------------------------------------------


def test_every_row_is_there_and_none_has_an_error(ran: Run) -> None:
    assert ran.outcome.is_complete
    assert not ran.outcome.errors
    assert not list(faults_of(ran.results))
    generations, likelihoods = ran.rows("generations"), ran.rows("likelihoods")
    assert len(generations) == len(CONFIGURATIONS) * PROMPTS * SEEDS
    assert len(likelihoods) == len(CONFIGURATIONS) * PROMPTS
    assert {row["configuration"] for row in generations} == CONFIGURATIONS
    assert not [row for row in generations + likelihoods if row["error"]]
    assert not [row for row in generations if row["warmup"]]


def test_cells_say_what_was_dropped_and_skipped(trial: Trial, ran: Run) -> None:
    sizes = Artifact.open(trial.artifact).sizes()
    num_bytes = 4 * sum(size for layer in sizes for size in layer.values())
    cells = ran.cells("generations")
    assert len(cells) == len(CONFIGURATIONS) * SEEDS * SHARDS
    for cell in cells:
        if cell["configuration"] not in MASKED:
            assert cell["sparsity"] is cell["skipped_bytes"] is cell["select_s"] is None
            continue
        assert cell["sparsity"] == pytest.approx(0.5, abs=1 / 64)
        assert 0 < cell["select_s"] < cell["decode_s"] < cell["wall_s"]
        # A completion's first token comes of its prompt, which is computed in full.
        num_masked = cell["completion_tokens"] - cell["rows"]
        alone = num_masked * cell["sparsity"] * num_bytes
        if cell["configuration"].endswith("-1"):
            assert cell["skipped_bytes"] == round(alone)
        else:
            assert 0 < cell["skipped_bytes"] < alone, "two rows keep more inputs than one"


def test_targets_are_masked_as_generated_tokens_are(ran: Run) -> None:
    cells = ran.cells("likelihoods")
    assert len(cells) == len(CONFIGURATIONS) * SHARDS
    for cell in cells:
        if cell["configuration"] not in MASKED:
            assert cell["sparsity"] is cell["skipped_bytes"] is cell["select_s"] is None
        else:
            assert cell["sparsity"] == pytest.approx(0.5, abs=1 / 64)
            assert cell["skipped_bytes"] == 0, "a target at once is more rows than the kernel's"
            assert 0 < cell["select_s"] < cell["wall_s"]


def test_weights_are_private_and_shared_by_both_batch_sizes(ran: Run) -> None:
    held = {(c["configuration"], c["weight_bytes_private"]) for c in ran.cells("generations")}
    private = dict(held)
    assert len(held) == len(private)
    assert private["dense.batch_size-1"] == private["dense.batch_size-2"] == 0
    assert private["larosa.batch_size-1"] == private["larosa.batch_size-2"] > 0


def test_what_is_lost_is_in_the_bits_per_byte(ran: Run) -> None:
    nats: dict[str, list[float]] = {name: [] for name in CONFIGURATIONS}
    for row in sorted(ran.rows("likelihoods"), key=lambda row: str(row["prompt_id"])):
        nats[row["configuration"]].append(row["nats"])
    for kind in ("dense", "larosa"):
        assert nats[f"{kind}.batch_size-1"] == nats[f"{kind}.batch_size-2"]
    pairs = list(zip(nats["dense.batch_size-1"], nats["larosa.batch_size-1"], strict=True))
    assert all(dense != sparse for dense, sparse in pairs)
    num_bytes = sum(len(f" target {i}") for i in range(PROMPTS))
    data = report_data(ran.results)
    bits = {c["configuration"]: c["metrics"]["bits_per_byte"] for c in data["configurations"]}
    for name, values in nats.items():
        assert bits[name]["n"] == PROMPTS
        assert bits[name]["mean"] == pytest.approx(sum(values) / num_bytes / math.log(2))


def test_the_report_states_the_sparsity(ran: Run) -> None:
    data = report_data(ran.results)
    json.dumps(data, allow_nan=False)
    # Beside what a busy machine gives rise to.
    own = [note for note in data["notes"] if "of the weights of attention and MLP" in note]
    notes = {note.partition(":")[0]: note for note in own}
    assert notes.keys() == MASKED
    dropped = {c["configuration"]: c["sparsity"] for c in ran.cells("generations")}
    for name, note in notes.items():
        share = f"{dropped[name] * 100:.1f} %"
        assert f"{share} of the weights of attention and MLP had an input of zero" in note
        assert "% of their bytes were not read" in note
        assert "% of the time" in note
    found = {c["configuration"]: c for c in data["comparisons"]}
    assert {name: found[name]["vs"] for name in MASKED} == {
        name: name.replace("larosa", "dense") for name in MASKED
    }
    assert all(found[name]["texts"]["differing"] for name in MASKED)


# --- again ---------------------------------------------------------------------------------------


def test_the_report_repeats_what_the_artifact_notes(
    run: Callable[..., tuple[int, str, str]], ran: Run, tmp_path: Path
) -> None:
    """In the terminal, as JSON, in Markdown and on the page."""
    said = f"larosa of {', '.join(sorted(MASKED))}: {NOTE}"
    output = ran.results.output
    code, out, _ = run("report", output)
    assert code == 0
    assert said in " ".join(out.split())
    assert said in json.loads(run("report", output, "--json")[1])["notes"]
    markdown, page = tmp_path / "report.md", tmp_path / "report.html"
    assert run("report", output, "--markdown", markdown, "--html", page)[0] == 0
    assert said in html.unescape(markdown.read_text()).replace("\\", "")
    assert html.escape(said) in page.read_text().replace("<wbr>", "").replace("\n", " ")


def test_more_workers_change_nothing_that_is_deterministic(
    trial: Trial, ran: Run, tmp_path: Path
) -> None:
    again = trial.run(tmp_path / "out", workers=2)
    kinds: tuple[Kind, ...] = ("generations", "likelihoods")
    for kind in kinds:
        names = deterministic_columns(kind)
        one, two = (sorted_rows(run.rows(kind), names) for run in (ran, again))
        assert one == two
        # Steps of a batch are the same ones, so that even what they skip is.
        names = [column.name for column in CELLS if column.deterministic]
        names += ["sparsity", "skipped_bytes", "num_steps"]
        one, two = (sorted_rows(run.cells(kind), names) for run in (ran, again))
        assert one == two


def sorted_rows(rows: list[dict[str, Any]], names: list[str]) -> list[list[Any]]:
    return sorted(([row[name] for name in names] for row in rows), key=repr)


def did_nothing(run: Run) -> bool:
    done = run.outcome.cells_done == run.outcome.cells_total
    return done and not run.outcome.rows and run.stages == ["reading the spec and the prompts"]


def test_the_same_spec_again_does_nothing(trial: Trial, ran: Run) -> None:
    output = trial.folder / "out"
    before = written(output)
    assert did_nothing(trial.run(output))
    assert written(output) == before


def test_an_artifact_may_be_moved(trial: Trial, ran: Run, elsewhere: Path) -> None:
    output = trial.folder / "out"
    before = written(output)
    assert did_nothing(trial.run(output, artifact=elsewhere))
    assert written(output) == before
    assert report_data(ran.results)["notes"], "a report needs no artifact"


# --- what is refused -----------------------------------------------------------------------------


def test_another_artifact_in_its_place(trial: Trial, ran: Run, elsewhere: Path) -> None:
    make_artifact(trial.lm, trial.artifact, variant="topk")
    output = trial.folder / "out"
    before = written(output)
    with pytest.raises(InputError, match="another trial") as caught:
        trial.run(output)
    for name in MASKED:
        line = f"configurations[{name}].optimizations[larosa]: its artifact differs"
        assert line in str(caught.value)
    assert "dense" not in str(caught.value)
    assert written(output) == before


def test_no_artifact_where_it_should_be(trial: Trial, elsewhere: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no artifact of larosa: it is not there") as caught:
        trial.run(tmp_path / "out")
    assert caught.value.field == "optimizations.larosa.artifact"
    command = f"optrial prepare larosa --model MODEL --data DATA --out {trial.artifact}"
    assert command in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_another_model(trial: Trial, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_artifact(larosa_models.model("llama"), other)
    with pytest.raises(InputError, match="was made from another model") as caught:
        trial.run(tmp_path / "out", artifact=other)
    assert caught.value.source == str(other)
    assert not (tmp_path / "out").exists(), "something was half-written"
