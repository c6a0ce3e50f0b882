"""The noise is what it claims to be, and the sampler draws from the distribution that is asked."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from cluster.engine.sampling import (
    Sampler,
    SamplingParams,
    exponential_noise,
    step_key,
    stream_key,
    token_hashes,
)


def sampler(size: int, lengths: list[int] | None = None) -> Sampler:
    base = torch.tensor(lengths or [1] * size, dtype=torch.int32)
    return Sampler(torch.arange(size), base, torch.device("cpu"))


def draws(logits: torch.Tensor, params: SamplingParams, count: int) -> torch.Tensor:
    """How often each token is drawn over `count` prompts."""
    choose = sampler(len(logits))
    counts = torch.zeros(len(logits))
    rows = 500
    for start in range(0, count, rows):
        keys = [step_key(stream_key(7, str(start + i)), 0) for i in range(rows)]
        tokens = choose(logits.expand(rows, -1), [params] * rows, keys, [99] * rows)
        counts += torch.bincount(torch.tensor(tokens), minlength=len(logits))
    return counts


def test_noise_is_exponential_in_both_directions() -> None:
    hashes = token_hashes(torch.arange(2000))
    keys = [step_key(stream_key(seed, "p"), step) for seed in range(4) for step in range(25)]
    noise = exponential_noise(keys, hashes)
    assert bool(torch.isfinite(noise).all())
    assert bool((noise > 0).all())
    assert stats.kstest(noise.flatten().numpy(), "expon").pvalue > 1e-3
    for row in (noise[0], noise[:, 0]):
        assert stats.kstest(row.numpy(), "expon").pvalue > 1e-4
    between = torch.corrcoef(noise).fill_diagonal_(0)
    assert float(between.abs().max()) < 5 / math.sqrt(2000)


def test_noise_depends_on_its_key_alone() -> None:
    hashes = token_hashes(torch.arange(300))
    keys = [step_key(stream_key(0, "a"), i) for i in range(5)]
    batch = exponential_noise(keys, hashes)
    for i, key in enumerate(keys):
        assert torch.equal(exponential_noise([key], hashes)[0], batch[i])
        assert torch.equal(exponential_noise([key], hashes[100:150])[0], batch[i, 100:150])
    assert len({stream_key(s, p) for s in range(20) for p in ("a", "b", "a b")}) == 60


def test_large_token_keys_are_told_apart() -> None:
    keys = torch.tensor([0, 1, 1 << 31, (1 << 31) + 1, 1 << 40, (1 << 62) + 5, (1 << 63) - 1])
    hashes = token_hashes(keys)
    assert hashes.dtype == torch.int32
    assert len(set(hashes.tolist())) == len(keys)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, 0.3])
    counts = draws(logits, SamplingParams(temperature=temperature), 20_000)
    expected = torch.softmax(logits / temperature, -1) * counts.sum()
    assert stats.chisquare(counts.numpy(), expected.numpy(), sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.62, 0.9, 0.999])
def test_nucleus_is_the_fewest_tokens_that_reach_top_p(top_p: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, 0.3, -6.0])
    p, order = torch.softmax(logits.double(), -1).sort(descending=True)
    size = int((p.cumsum(0) - p < top_p).sum())
    kept = set(order[:size].tolist())
    counts = draws(logits, SamplingParams(temperature=1.0, top_p=top_p), 20_000)
    assert {i for i, n in enumerate(counts.tolist()) if n} <= kept
    inside = torch.tensor(sorted(kept))
    expected = torch.softmax(logits[inside], -1) * counts.sum()
    if size > 1:
        result = stats.chisquare(counts[inside].numpy(), expected.numpy(), sum_check=False)
        assert result.pvalue > 1e-3


def test_top_k_then_top_p() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, 0.3])
    assert set(draws(logits, SamplingParams(1.0, top_k=2), 4000).nonzero().flatten().tolist()) == {
        0,
        4,
    }
    # Of the three best, the mass is 0.51, 0.31, 0.19: the second crosses 0.6.
    counts = draws(logits, SamplingParams(1.0, top_p=0.6, top_k=3), 4000)
    assert set(counts.nonzero().flatten().tolist()) == {0, 4}


def test_rows_are_sampled_each_by_its_own_settings() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 40_000)
    params = [
        SamplingParams(),
        SamplingParams(1.0),
        SamplingParams(0.7, top_p=0.9),
        SamplingParams(1.3, top_k=5),
        SamplingParams(),
        SamplingParams(1.0, top_p=0.2, top_k=50),
    ]
    keys = [step_key(stream_key(1, str(i)), 3) for i in range(6)]
    choose = sampler(40_000)
    together = choose(logits, params, keys, [9] * 6)
    alone = [
        choose(logits[i : i + 1], params[i : i + 1], keys[i : i + 1], [9])[0] for i in range(6)
    ]
    assert together == alone
    assert together[0] == int(logits[0].argmax())
    assert together[3] in logits[3].topk(5).indices.tolist()


def test_tokens_longer_than_the_budget_are_masked() -> None:
    choose = sampler(4, lengths=[1, 1, 2, 5])
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(3, -1)
    assert choose(logits, [SamplingParams()] * 3, [0] * 3, [5, 4, 1]) == [3, 2, 1]


def test_not_finite_rows_are_marked() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [float("-inf")] * 2])
    for params in (SamplingParams(), SamplingParams(1.0), SamplingParams(1.0, top_p=0.5)):
        chosen = sampler(2)(logits, [params] * 3, [1, 2, 3], [9] * 3)
        assert chosen[0] in (0, 1)
        assert chosen[1:] == [-1, -1]
