"""Rotation alone changes nothing, for every architecture, with random gains and biases."""

from __future__ import annotations

from pathlib import Path

import larosa_models
import pytest
import torch
from torch import Tensor

from optim.errors import InputError
from optim.larosa.artifact import Artifact
from optim.larosa.optimization import Larosa
from optim.larosa.preparation import LarosaPreparation
from optim.larosa.rotation.bases import geometric_mean, orthogonality_error, principal_axes
from optim.model import LanguageModel

QUICK = {"sequences": 6, "tokens": 64, "held_out": 0,
         "break_even": False}  # fmt: skip


def prepared(lm: LanguageModel, folder: Path, **changes: object) -> Path:
    out = folder / "artifact"
    preparation = LarosaPreparation.model_validate(QUICK | changes)
    preparation.run(lm, larosa_models.TEXTS, out, source="test")
    return out


def logits(lm: LanguageModel, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = lm.model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("span", [1, 2, 0])
@pytest.mark.parametrize("architecture", larosa_models.KNOWN)
def test_logits_are_those_of_the_original(architecture: str, span: int, tmp_path: Path) -> None:
    lm = larosa_models.model(architecture)
    ids = larosa_models.ids()
    before = logits(lm, ids)
    out = prepared(lm, tmp_path, span=span)
    rotated = Larosa(artifact=str(out), sparsity=0).apply(lm)
    after = logits(rotated, ids)
    assert float((after - before).abs().max() / before.std()) < 1e-4
    assert torch.equal(logits(lm, ids), before), "the model that was given has changed"
    manifest = Artifact.open(out).manifest
    assert manifest.orthogonality_error < 1e-10
    assert len(manifest.adapted) == ({1: 2, 2: 1, 0: 0}[span] if manifest.folds else 0)
    assert manifest.folds == (architecture not in ("gemma2", "gemma3"))
    assert bool(manifest.notes) == (not manifest.folds)
    assert Larosa(artifact=str(out), sparsity=0.4).notes() == manifest.notes


@pytest.mark.parametrize("architecture", larosa_models.KNOWN)
def test_bfloat16_errs_no_more_than_the_original(architecture: str, tmp_path: Path) -> None:
    exact = larosa_models.model(architecture, torch.float64)
    half = larosa_models.model(architecture, torch.bfloat16)
    ids = larosa_models.ids(4)
    truth = logits(exact, ids)
    rotated = Larosa(artifact=str(prepared(half, tmp_path)), sparsity=0).apply(half)
    own = (logits(half, ids) - truth).square().mean().sqrt()
    turned = (logits(rotated, ids) - truth).square().mean().sqrt()
    assert float(turned) <= 1.5 * float(own)


@pytest.mark.parametrize("variant", ["larosa", "topk", "threshold"])
@pytest.mark.parametrize("architecture", ["llama", "phi", "gpt2"])
def test_other_variants_change_nothing_either(
    architecture: str, variant: str, tmp_path: Path
) -> None:
    lm = larosa_models.model(architecture)
    ids = larosa_models.ids()
    rotated = Larosa(artifact=str(prepared(lm, tmp_path, variant=variant)), sparsity=0).apply(lm)
    before = logits(lm, ids)
    assert float((logits(rotated, ids) - before).abs().max() / before.std()) < 1e-4


def test_unchanged_parameters_are_shared(tmp_path: Path) -> None:
    lm = larosa_models.model("llama")
    plain = Larosa(artifact=str(prepared(lm, tmp_path, variant="topk")), sparsity=0.5).apply(lm)
    assert plain.model.lm_head.weight is lm.model.lm_head.weight
    assert plain.model.model.embed_tokens.weight is lm.model.model.embed_tokens.weight
    assert plain.model.config is lm.model.config


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    from optim.model import wrap

    config = OPTConfig(
        vocab_size=258, hidden_size=16, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16,
    )  # fmt: skip
    lm = wrap(OPTForCausalLM(config), larosa_models.model("llama").tokenizer)
    with pytest.raises(InputError, match=r"'opt'.*gemma, gemma2.*phi3") as caught:
        prepared(lm, tmp_path)
    assert caught.value.field == "model"
    assert not list(tmp_path.iterdir())


def test_axes_are_orthogonal_sorted_and_repeatable() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 24, dtype=torch.float64) * torch.arange(1, 25)
    moments = x.T @ x
    axes = principal_axes(moments)
    assert orthogonality_error(axes) < 1e-12
    spread = (x @ axes).square().sum(0)
    assert torch.equal(spread, spread.sort(descending=True).values)
    assert torch.equal(axes, principal_axes(moments.clone()))


def test_geometric_mean_of_matrices_that_commute() -> None:
    axes = principal_axes(torch.randn(6, 6, dtype=torch.float64).cov())
    first, second = torch.tensor([9.0, 4, 1, 1, 1, 1]), torch.tensor([1.0, 4, 16, 1, 1, 1])
    mean = geometric_mean(
        axes @ torch.diag(first.double()) @ axes.T, axes @ torch.diag(second.double()) @ axes.T
    )
    expected = (first * second).sqrt().double()
    assert torch.allclose((axes.T @ mean @ axes).diagonal(), expected / expected.sum(), atol=1e-12)
