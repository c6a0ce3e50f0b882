"""The order of weights in memory: which lie by columns, and that nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_models
import torch
from test_worker import prepare
from torch import nn

from cluster.plan import Configuration, OptimizationSettings, WeightOrder
from cluster.worker.loaded_configuration import order_weights
from cluster.worker.worker import Worker
from optim.model import weight_bytes


def by_columns(model: nn.Module) -> set[str]:
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not module.weight.is_contiguous()
    }


def test_weights_with_as_many_outputs_as_inputs_lie_by_columns() -> None:
    model = copy.deepcopy(tiny_models.model("llama").model)
    plain = copy.deepcopy(model)
    order_weights(model, "rows")
    assert not by_columns(model)
    order_weights(model, "columns")
    wide = {n for n, m in model.named_modules()
            if isinstance(m, nn.Linear) and m.out_features >= m.in_features}  # fmt: skip
    assert "lm_head" in wide
    assert "model.layers.0.mlp.down_proj" not in wide
    assert by_columns(model) == wide
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert own.shape == other.shape
        assert torch.equal(own, other)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    order_weights(model, "columns")
    assert before == {name: p.data_ptr() for name, p in model.named_parameters()}


def test_half_precision_stays_as_it_is() -> None:
    model = copy.deepcopy(tiny_models.model("llama", torch.bfloat16).model)
    order_weights(model, "columns")
    assert not by_columns(model)


def test_tied_weights_stay_tied_and_logits_are_the_same_to_a_rounding() -> None:
    model = copy.deepcopy(tiny_models.model("gemma3").model)
    ids = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        plain = model(ids).logits
        order_weights(model, "columns")
        ordered = model(ids).logits
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    torch.testing.assert_close(ordered, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_all_configurations_of_a_worker_have_the_same_order_and_share_weights(
    order: WeightOrder, tmp_path: Path, tiny_model_folder: Path
) -> None:
    paged = OptimizationSettings(name="vattention", fingerprint="")
    plan, _ = prepare(
        tmp_path,
        tiny_model_folder,
        weight_order=order,
        configurations=(
            Configuration(name="one", batch_size=1, fingerprint="1"),
            Configuration(name="two", batch_size=1, fingerprint="2", optimizations=(paged,)),
        ),
    )
    worker = Worker(plan.model_dump_json(), 0)
    worker.load()
    assert worker.base is not None
    one, two = worker.arms["one"], worker.arms["two"]
    found = by_columns(one.engine.lm.model)
    assert found == by_columns(two.engine.lm.model)
    assert ("lm_head" in found) == (order == "columns")
    assert one.weight_bytes_private == two.weight_bytes_private == 0
    assert weight_bytes(worker.base.model)[1] == one.weight_bytes_shared
