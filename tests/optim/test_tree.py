"""Copies of module trees share parameters, and changing one leaves the other alone."""

from __future__ import annotations

import larosa_models
import pytest
import torch
from torch import nn

from optim import tree


@pytest.mark.parametrize("architecture", larosa_models.KNOWN)
def test_a_copy_is_the_model_and_shares_every_tensor(architecture: str) -> None:
    model = larosa_models.model(architecture).model
    copy = tree.copied(model)
    ids = larosa_models.ids()
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, copy(input_ids=ids).logits)
    mine, other = dict(copy.named_parameters()), dict(model.named_parameters())
    assert mine.keys() == other.keys()
    assert all(mine[name] is other[name] for name in mine)
    ours = {id(module) for module in model.modules()}
    assert not ours & {id(module) for module in copy.modules()}
    assert dict(copy.named_buffers()).keys() == dict(model.named_buffers()).keys()


def test_a_change_stays_in_the_copy() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 1)))
    copy = tree.copied(model)
    tree.replace(copy, "1.1", nn.Identity())
    tree.replace(copy, "0", nn.Identity())
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model[1][1], nn.Linear)
    assert copy(torch.ones(1, 2)).shape == (1, 2)
    with pytest.raises(KeyError, match=r"1\.7"):
        tree.replace(copy, "1.7", nn.Identity())


def test_a_module_that_occurs_twice_stays_one_module() -> None:
    shared = nn.Linear(2, 2)
    copy = tree.copied(nn.ModuleDict({"one": shared, "two": shared}))
    assert copy["one"] is copy["two"]
    assert copy["one"] is not shared


def test_hooks_of_one_do_not_fire_on_the_other() -> None:
    model = larosa_models.model("llama").model
    ids = larosa_models.ids(1, 4)
    tree.copied(model)(input_ids=ids, output_hidden_states=True)
    copy = tree.copied(model)
    seen: list[str] = []
    copy.model.norm.register_forward_hook(lambda *_: seen.append("copy"))
    with torch.inference_mode():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        assert len(states) == 1 + model.config.num_hidden_layers
        assert not seen
        copy(input_ids=ids)
    assert seen == ["copy"]
