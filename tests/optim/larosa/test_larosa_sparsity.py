"""What is kept, when, and that it is the same whichever way the model is run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import larosa_models
import pytest
import tiny_models
import torch
from test_larosa_rotation import prepared
from torch import Tensor

from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.larosa.optimization import Larosa
from optim.larosa.sparse.modules import Mask, SparseLinear, StreamNorm
from optim.model import LanguageModel

ARCHITECTURES = sorted(larosa_models.KNOWN)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    return {}


@pytest.fixture
def sparse(artifacts: dict[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of an architecture with the settings that are given, prepared once."""

    def make(architecture: str, *, variant: str = "larosa+", **settings: Any) -> LanguageModel:
        lm = larosa_models.model(architecture)
        key = (architecture, variant)
        if key not in artifacts:
            folder = tmp_path_factory.mktemp("larosa")
            artifacts[key] = prepared(lm, folder, variant=variant)
        return Larosa(artifact=str(artifacts[key]), **settings).apply(lm)

    return make


def projections(lm: LanguageModel) -> list[SparseLinear]:
    return [m for m in lm.model.modules() if isinstance(m, SparseLinear)]


def inputs_of_products(lm: LanguageModel, ids: Tensor) -> list[tuple[SparseLinear, Tensor]]:
    """What every projection multiplies in one decoding step after a prefill."""
    seen: list[tuple[SparseLinear, Tensor]] = []
    kernels = projections(lm)[0].kernels
    plain = kernels.sparse_linear

    def watched(x: Tensor, wt: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        owner = next((p for p in projections(lm) if p.wt_DN is wt), None)
        if owner is not None:  # An adapter reads all of its input.
            seen.append((owner, x))
        return plain(x, wt, bias)

    kernels.sparse_linear = watched  # type: ignore[method-assign]
    with torch.inference_mode():
        out = lm.model(input_ids=ids[:, :-1], use_cache=True)
        assert not seen, "a prompt went through the sparse kernel"
        lm.model(input_ids=ids[:, -1:], past_key_values=out.past_key_values)
    return seen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exactly_k_channels_are_kept_at_every_site(sparse: Any, architecture: str) -> None:
    lm = sparse(architecture, sparsity=0.4, sparse_rows=8)
    seen = inputs_of_products(lm, larosa_models.ids(3, 20))
    assert len(seen) == len(projections(lm))
    for owner, x in seen:
        width = x.shape[-1]
        assert torch.equal(
            torch.count_nonzero(x, -1), torch.full(x.shape[:-1], round(0.6 * width))
        ), f"{owner.wt_DN.shape}"


def test_ties_do_not_keep_more(sparse: Any) -> None:
    lm = sparse("llama", sparsity=0.5)
    norm = next(m for m in lm.model.modules() if isinstance(m, StreamNorm))
    norm.mask.score_D = None
    x = torch.ones(2, 1, 64)
    x[:, :, ::3] = -1
    assert torch.count_nonzero(norm(x), -1).flatten().tolist() == [32, 32]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_sparsity_is_the_dense_path_to_the_last_bit(sparse: Any, architecture: str) -> None:
    ids = larosa_models.ids(2, 12)
    nothing, forced = sparse(architecture, sparsity=0), sparse(architecture, sparsity=0)
    with torch.inference_mode():
        out = nothing.model(input_ids=ids[:, :-1], use_cache=True)
        step = nothing.model(input_ids=ids[:, -1:], past_key_values=out.past_key_values).logits
        with forced.phase("prefill"):
            out = forced.model(input_ids=ids[:, :-1], use_cache=True)
            same = forced.model(input_ids=ids[:, -1:], past_key_values=out.past_key_values).logits
    assert torch.equal(step, same)
    assert not any(isinstance(getattr(m, "mask", None), Mask) for m in nothing.model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generating_equals_the_full_pass_when_both_are_sparse(
    sparse: Any, architecture: str
) -> None:
    lm = sparse(architecture, sparsity=0.5, sparsify_prefill=True)
    ids = larosa_models.ids(2, 9)
    with torch.inference_mode():
        made = lm.model.generate(
            ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        whole = lm.model(input_ids=made.sequences[:, :-1]).logits[:, 8:]
    steps = torch.stack(made.logits, 1)
    assert torch.equal(whole.argmax(-1), made.sequences[:, 9:])
    assert float((whole - steps).abs().max() / whole.std()) < 1e-3


@pytest.mark.parametrize("rows", [0, 1, 8])
def test_the_implementation_changes_no_token(sparse: Any, rows: int) -> None:
    """Which kernel serves which batch size decides speed, and the last bits, not the text."""
    texts = {}
    for batch_size in (1, 4):
        lm = sparse("llama", sparsity=0.5, sparse_rows=rows)
        engine = Engine(lm, batch_size=batch_size)
        params = SamplingParams(max_new_tokens=20, temperature=0.8)
        requests = [
            Request(str(n), prompt, params) for n, prompt in enumerate(tiny_models.prompts(6))
        ]
        texts[batch_size] = {c.request.prompt_id: c.ids for c in engine.generate(requests)}
    assert texts[1] == texts[4]


def test_a_prompt_of_one_token_is_a_prompt_for_the_engine(sparse: Any) -> None:
    """And so is the last chunk of a longer one, whatever its length: chunks change nothing."""
    ids = {}
    for chunk in (None, 1, 3):
        lm = sparse("llama", sparsity=0.6)
        engine = Engine(lm, batch_size=2, prefill_chunk=chunk)
        params = SamplingParams(max_new_tokens=12)
        requests = [Request(str(n), "abcdefg"[: n + 1], params) for n in range(7)]
        ids[chunk] = {c.request.prompt_id: c.ids for c in engine.generate(requests)}
    assert ids[None] == ids[1] == ids[3]


def test_targets_are_scored_as_they_would_be_generated(sparse: Any) -> None:
    lm = sparse("llama", sparsity=0.6)
    engine = Engine(lm)
    context, continuation = "some context", " and more"
    score = engine.score(context, continuation)
    ids = lm.tokenizer(continuation)["input_ids"]
    nats = 0.0
    with torch.inference_mode():
        out = lm.model(input_ids=torch.tensor([lm.tokenizer(context)["input_ids"]]), use_cache=True)
        for token in ids:
            nats -= float(torch.log_softmax(out.logits[0, -1].float(), -1)[token])
            out = lm.model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values)
    assert score.nats == pytest.approx(nats, rel=1e-5)
    dense = Engine(larosa_models.model("llama")).score(context, continuation)
    assert abs(dense.nats - score.nats) > 1e-3
    assert engine.score(context, "x").num_tokens == 1


@pytest.mark.parametrize("sparsity", [0.25, 0.33, 0.4, 0.5, 0.8])
def test_the_sparsity_is_that_of_the_weights(sparse: Any, sparsity: float) -> None:
    lm = sparse("llama", sparsity=sparsity, sparse_rows=1)
    layer = lm.model.model.layers[0].layer
    kept = total = 0
    for path, site in (("q", "h1"), ("k", "h1"), ("v", "h1"), ("o", "h2")):
        linear = getattr(layer.self_attn, f"{path}_proj")
        mask = layer.input_layernorm.mask if site == "h1" else linear.mask
        kept, total = kept + mask.k * linear.wt_DN.shape[1], total + linear.wt_DN.numel()
    for path, site in (("gate", "h3"), ("up", "h3"), ("down", "h4")):
        linear = getattr(layer.mlp, f"{path}_proj")
        mask = layer.post_attention_layernorm.mask if site == "h3" else linear.mask
        kept, total = kept + mask.k * linear.wt_DN.shape[1], total + linear.wt_DN.numel()
    assert lm.meter is not None
    assert lm.meter.facts()["sparsity"] is None
    ids = larosa_models.ids(1, 5)
    with torch.inference_mode():
        out = lm.model(input_ids=ids, use_cache=True)
        for _ in range(3):
            lm.model(input_ids=ids[:, :1], past_key_values=out.past_key_values)
    facts = lm.meter.facts()
    assert facts["sparsity"] == pytest.approx(1 - kept / total)
    # 64 channels can be dropped in steps of 1.6 %; wide models come closer.
    assert facts["sparsity"] == pytest.approx(sparsity, abs=1 / 64)
    assert facts["skipped_bytes"] == pytest.approx(3 * 3 * 4 * (total - kept))
    assert facts["select_s"] > 0
    lm.meter.reset()
    assert lm.meter.facts()["skipped_bytes"] == 0


def test_a_threshold_keeps_what_it_was_calibrated_to_keep(sparse: Any) -> None:
    lm = sparse("llama", variant="threshold", sparsity=0.4, sparse_rows=1)
    assert lm.meter is not None
    assert lm.meter.planned_sparsity is None  # type: ignore[attr-defined]
    with torch.inference_mode():
        for text in larosa_models.TEXTS[:20]:
            ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
            with lm.phase("decode"):
                lm.model(input_ids=ids)
    assert lm.meter.facts()["sparsity"] == pytest.approx(0.4, abs=0.015)


def test_more_sparsity_is_further_from_dense(sparse: Any) -> None:
    ids = larosa_models.ids(4, 32)
    with torch.inference_mode():
        dense = torch.log_softmax(larosa_models.model("llama").model(input_ids=ids).logits, -1)
        costs = []
        for sparsity in (0.1, 0.3, 0.5, 0.7):
            lm = sparse("llama", sparsity=sparsity, sparsify_prefill=True)
            own = torch.log_softmax(lm.model(input_ids=ids).logits, -1)
            costs.append(float((dense.exp() * (dense - own)).sum(-1).mean()))
    assert costs == sorted(costs)
    assert costs[0] > 0
    assert all(map(math.isfinite, costs))
