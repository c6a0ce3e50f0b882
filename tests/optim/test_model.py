"""Loading, naming and sharing of models, and the registry of optimisations."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import ClassVar

import pytest
import tiny_models
import torch
from pydantic import BaseModel

from optim import registry
from optim.cache.slot_cache import cache_factory, layer_windows
from optim.errors import InputError
from optim.model import LanguageModel, fingerprint, load, load_tokenizer, weight_bytes, wrap
from optim.names import Stage
from optim.optimization import Preparation
from optim.registry import apply_all, optimization


class Doubled(BaseModel, frozen=True):
    """A toy optimisation: doubles the head, in a new tree that shares all else."""

    name: ClassVar[str] = "doubled"
    stage: ClassVar[Stage] = "weights"
    preparation: ClassVar[type[Preparation] | None] = None
    places: ClassVar[frozenset[str]] = frozenset()
    factor: float = 2.0

    def apply(self, lm: LanguageModel) -> LanguageModel:
        memo = {id(p): p for p in lm.model.parameters()}
        model = copy.deepcopy(lm.model, memo)
        model.lm_head.weight = torch.nn.Parameter(
            model.lm_head.weight * self.factor, requires_grad=False
        )
        return LanguageModel(model, lm.tokenizer, lm.vocabulary, lm.new_cache)

    def content(self) -> str:
        return ""


class Renamed(Doubled, frozen=True):
    name: ClassVar[str] = "renamed"
    stage: ClassVar[Stage] = "vocabulary"


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"doubled": f"{__name__}:Doubled", "renamed": f"{__name__}:Renamed"}
    monkeypatch.setattr(registry, "BUILT_IN", places)


def test_loads_in_the_dtype_that_is_asked(tiny_model_folder: Path) -> None:
    lm = load(str(tiny_model_folder), dtype="bfloat16", device="cpu")
    assert lm.model.dtype == torch.bfloat16
    assert load(str(tiny_model_folder), device="cpu").model.dtype == torch.float32
    assert lm.context_length == 256
    assert lm.end_ids == {tiny_models.END}
    assert not any(p.requires_grad for p in lm.model.parameters())


def test_loaded_model_is_the_saved_one(tiny_model_folder: Path) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        a = load(str(tiny_model_folder)).model(ids).logits
        b = tiny_models.model("llama").model(ids).logits
    assert torch.equal(a, b)


@pytest.mark.parametrize("path", ["./none", "/nowhere/at/all", "~/none at all", "a b c"])
def test_paths_that_are_no_model(path: str) -> None:
    with pytest.raises(InputError, match="not a model"):
        load(path)


def test_hub_id_without_a_network_is_an_input_error() -> None:
    with pytest.raises(InputError, match="cannot be had from the hub"):
        load_tokenizer("nobody/has-this-model")


def test_pickled_weights_are_not_read(tiny_model_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model_folder / name).read_bytes())
    torch.save(tiny_models.model("llama").model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        load(str(tmp_path))


def test_cuda_where_there_is_none(tiny_model_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match="no CUDA device"):
        load(str(tiny_model_folder), device="cuda")


def test_fingerprint_follows_content(tiny_model_folder: Path, tmp_path: Path) -> None:
    for file in tiny_model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert fingerprint(str(tmp_path)) == fingerprint(str(tiny_model_folder))
    (tmp_path / "notes.md").write_text("not part of the model")
    assert fingerprint(str(tmp_path)) == fingerprint(str(tiny_model_folder))
    config = json.loads((tmp_path / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert fingerprint(str(tmp_path)) != fingerprint(str(tiny_model_folder))


def test_applying_leaves_the_base_as_it_is_and_shares_its_weights() -> None:
    base = tiny_models.model("llama")
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = base.model(ids).logits
        changed = apply_all(base, [optimization("doubled", {"factor": 3})])
        torch.testing.assert_close(changed.model(ids).logits, 3 * before, rtol=1e-4, atol=1e-4)
        assert torch.equal(base.model(ids).logits, before)
    shared, private = weight_bytes(changed.model, base.model)
    head, buffers = 258 * 64 * 4, 1024
    assert head <= private <= head + buffers, "the rotary frequencies are copied, too"
    assert shared + head == pytest.approx(sum(weight_bytes(base.model)), abs=buffers)


def test_order_is_by_stage_not_by_mention(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def note(self: Doubled, lm: LanguageModel) -> LanguageModel:
        seen.append(self.name)
        return lm

    monkeypatch.setattr(Doubled, "apply", note)
    chosen = [optimization("doubled", {}), optimization("renamed", {})]
    apply_all(tiny_models.model("llama"), chosen)
    assert seen == ["renamed", "doubled"]


def test_unknown_optimisation_and_setting() -> None:
    with pytest.raises(InputError, match="Did you mean doubled"):
        optimization("dubled", {})
    with pytest.raises(InputError, match="factor"):
        optimization("doubled", {"factor": "much"})


def test_wrong_settings_are_named_with_what_would_be_right() -> None:

    with pytest.MonkeyPatch.context() as patch:
        place = "optim.vattention.optimization:VAttention"
        patch.setattr(registry, "BUILT_IN", {"vattention": place})
        with pytest.raises(InputError, match=r"has no setting 'budget'.*Did you mean budget_bytes"):
            optimization("vattention", {"budget": 5})
        with pytest.raises(InputError, match=r"has no setting 'zz'. Known: pages, reclaim"):
            optimization("vattention", {"zz": 5})
        with pytest.raises(InputError, match=r"vattention\.reclaim: .*'deferred', got 'lazy'"):
            optimization("vattention", {"reclaim": "lazy"})


def test_unknown_cache() -> None:
    with pytest.raises(InputError, match="dynamic, static"):
        cache_factory("paged")


def test_layers_that_are_no_attention_are_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(InputError, match="only full and sliding-window attention"):
        layer_windows(MambaForCausalLM(config))


def test_a_model_is_named_by_its_files_however_it_is_loaded(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    import shutil

    lm = load(str(tiny_model_folder))
    name = fingerprint(str(tiny_model_folder))
    assert lm.identity() == name
    assert load(str(tiny_model_folder), fingerprint=name).identity() == name
    # Only the hub's own cache is believed without a look at the files.
    again = shutil.copytree(tiny_model_folder, tmp_path / "snapshots" / "best")
    assert fingerprint(str(again)) == name
    commit = "0123456789" * 4
    cached = shutil.copytree(tiny_model_folder, tmp_path / "models--a--b" / "snapshots" / commit)
    assert fingerprint(str(cached)) == commit


def test_a_model_in_memory_is_named_by_its_weights() -> None:
    lm = tiny_models.model("llama")
    other = copy.deepcopy(lm.model)
    assert wrap(other, lm.tokenizer).identity() == lm.identity()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    assert wrap(other, lm.tokenizer).identity() != lm.identity()
