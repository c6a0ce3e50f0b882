"""`explain`: the words follow from the numbers, and a single run gets no verdict."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from factorial_results import factorial_results
from program import Run
from trial_results import configurations, make_results

from cluster.plan import Cell, OptimizationSettings
from cluster.results.results import Results
from jobs.report.explain import explain_results
from jobs.report.sentences import Paragraph
from jobs.report.single_run import FEWEST_PROMPTS, Spread, assumed_spread, single_run_lines
from optim.errors import InputError


def text(paragraphs: list[Paragraph]) -> str:
    return "\n".join(line for p in paragraphs for line in (p.heading, *p.lines))


@pytest.fixture(scope="module")
def factorial(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return factorial_results(tmp_path_factory.mktemp("explain") / "out")


def test_why_fewer_tokens(factorial: Results) -> None:
    said = text(explain_results(factorial, "new.on", "completion_tokens"))
    assert "new.on against old.off: why fewer completion tokens?" in said
    assert "Verdict: lower." in said
    assert re.search(r"The vocabulary \(same text, other tokens\): -2\d\.\d %", said)
    assert re.search(r"Another text \(counted by one tokenizer\): -[45]\.\d+ %", said)
    assert "vocabulary, on average: -2" in said
    assert "sparse, on average: exactly 0." in said
    assert "0 of 96 texts are identical" in said
    assert "gave 0 other texts of 96" in said


def test_what_changes_nothing_is_said_to(factorial: Results) -> None:
    said = text(explain_results(factorial, "old.on", "completion_tokens"))
    assert "does it change completion tokens?" in said
    assert "exactly the same" in said
    assert "Nothing: every pair is exactly equal." in said
    said = text(explain_results(factorial, "old.on", "prompt_tokens"))
    assert "exactly the same number of tokens" in said


def test_every_configuration_and_every_metric_has_an_explanation(factorial: Results) -> None:
    from jobs.spec.metrics import METRICS

    for metric in METRICS:
        paragraphs = explain_results(factorial, None, metric.name)
        assert paragraphs[0].heading.startswith("old.on against old.off"), metric.name
        assert not re.search(r"\bnan\b|None", text(paragraphs)), metric.name


def test_a_cache_could_not_have_changed_tokens(tmp_path: Path) -> None:
    arms = tuple(
        c.model_copy(update={"optimizations": (OptimizationSettings(name="vattention"),)})
        if c.name in ("fast", "short")
        else c
        for c in configurations()
    )
    results = make_results(tmp_path / "out", arms=arms)
    said = text(explain_results(results, "fast", "completion_tokens"))
    assert "vattention: it only keeps keys and values in other memory" in said
    assert "Here 0 of 96 texts differ with it." in said


def test_an_open_verdict_says_what_would_settle_it(tmp_path: Path) -> None:
    def noisy(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for i, row in enumerate(rows if cell.configuration == "short" else ()):
            if "completion_tokens" in row:
                row["completion_tokens"] = 20 + (cell.start + i) * 7 % 31

    said = text(explain_results(make_results(tmp_path / "out", edit=noisy), "short",
                                "completion_tokens"))  # fmt: skip
    assert "inconclusive: neither a difference nor equality within ±2 % is shown" in said
    assert re.search(r"\d+ more prompts at these seeds", said)
    assert "`optrial settle" in said


def test_one_prompt_and_one_seed_shows_nothing(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_datasets": 1, "num_prompts": 1, "num_shards": 1, "seeds": (1,)}
    results = make_results(tmp_path / "out", **options)
    said = text(explain_results(results, "short", "completion_tokens"))
    assert "It cannot be told from chance" in said
    assert "single run shows nothing" in said
    assert "prompts x 3 seeds" in said, "it says what would, under the assumed spread"


def test_the_missions_example() -> None:
    """36 tokens in, 86 out before and 104 after: nothing is shown, and it says what would be."""
    said = "\n".join(single_run_lines(36, 86, 104))
    assert "36 tokens in, 86 out before, 104 after: +20.9 %" in said
    assert "shows nothing" in said
    assert "difference of 20.9 %" in said
    assert "difference of 2 %" in said
    assert "With half of it" in said
    assert "double of it" in said
    assert "pilot" in said
    assert assumed_spread().source in said
    assert "no equality either" in "\n".join(single_run_lines(None, 100, 100))


def test_needed_prompts_follow_the_formula() -> None:
    spread = Spread(0.04, 0.09, "here")
    by_formula = (0.04 + 0.09 / 3) * (2.80 / 0.02) ** 2
    assert spread.num_prompts(0.02, 3) == pytest.approx(by_formula, rel=0.01)
    assert spread.scaled(2).num_prompts(0.02, 3) == pytest.approx(4 * by_formula, rel=0.01)
    assert spread.num_prompts(0.02, 1) > spread.num_prompts(0.02, 5)
    assert spread.num_prompts(10.0, 3) == FEWEST_PROMPTS


def test_the_shipped_spread_is_a_measured_one() -> None:
    spread = assumed_spread()
    assert math.isfinite(spread.sd)
    assert 0 < spread.sd < 2
    assert spread.source


@pytest.mark.parametrize(
    ("configuration", "metric", "said"),
    [
        ("nobody", "completion_tokens", "`nobody` is not a configuration"),
        ("old.off", "completion_tokens", "is a reference"),
        ("repeat", "completion_tokens", "is a reference or a repeat"),
        (None, "speed", "there is no metric `speed`"),
    ],
)
def test_bad_input(factorial: Results, configuration: str | None, metric: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        explain_results(factorial, configuration, metric)
    assert said in str(raised.value)


def test_one_configuration_has_nothing_to_explain(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", arms=configurations()[:1])
    with pytest.raises(InputError, match="no difference to explain"):
        explain_results(results, None, "completion_tokens")


def test_the_command(run: Run, factorial: Results) -> None:
    code, out, _ = run("explain", factorial.store.url, "new.off")
    assert code == 0
    assert "why fewer completion tokens?" in out
    code, out, _ = run("explain", factorial.store.url, "new.off", "--json")
    assert {"heading", "lines"} == set(json.loads(out)[0])
    code, out, _ = run("explain", "--tokens", "86", "104", "--prompt-tokens", "36")
    assert code == 0
    assert "shows nothing" in out
    assert run("explain")[0] == 2
    assert run("explain", "--tokens", "0", "104")[0] == 2
    assert run("explain", factorial.store.url, "--tokens", "1", "2")[0] == 2


def test_a_change_that_is_the_same_everywhere_is_no_chance(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out")
    said = text(explain_results(results, "fast", "kv_committed_peak_bytes"))
    assert "Verdict: better." in said
    assert "16 pairs of shards" in said
    assert "less than 1 in 1,000 of such trials (cluster swaps)" in said
    assert "cannot be told from chance" not in said


def test_bits_per_byte_are_no_percent(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out")
    said = text(explain_results(results, "short", "bits_per_byte"))
    assert "1.000 became 2.000, +1.000 in every unit" in said
    assert "%" not in said.split("How much is chance")[0]
