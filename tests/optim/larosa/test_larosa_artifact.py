"""Artifacts: what is written, what is refused, and that transformers loads them."""

from __future__ import annotations

import json
from pathlib import Path

import larosa_models
import pytest
import torch
from test_larosa_rotation import QUICK, logits, prepared

from optim.errors import InputError
from optim.larosa.artifact import Artifact
from optim.larosa.optimization import Larosa
from optim.larosa.preparation import LarosaPreparation
from optim.registry import optimization


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(
        larosa_models.model("llama"), tmp_path_factory.mktemp("a"), held_out=2,
        break_even=True, levels=(0.4, 0.6),
    )  # fmt: skip


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def refusal(folder: Path, architecture: str = "llama", **settings: float) -> InputError:
    with pytest.raises(InputError) as caught:
        Larosa(artifact=str(folder), **settings).apply(  # type: ignore[arg-type]
            larosa_models.model(architecture)
        )
    assert caught.value.mend
    return caught.value


def test_the_manifest_tells_where_it_comes_from(artifact: Path) -> None:
    manifest = Artifact.open(artifact).manifest
    assert manifest.input == larosa_models.model("llama").identity()
    assert manifest.variant == "larosa+"
    assert manifest.calibration.source == "test"
    assert manifest.calibration.sequence_length == 64
    assert [level.sparsity for level in manifest.levels] == pytest.approx([0.4, 0.6])
    assert all(level.divergence is not None and level.divergence > 0 for level in manifest.levels)
    shapes = {(e.inputs, e.outputs) for e in manifest.break_even}
    assert shapes == {(64, 64), (64, 32), (64, 96), (96, 64)}
    assert {e.place for e in manifest.break_even} == {"cpu float32"}
    assert manifest.adapter_bytes == 2 * 64 * 64 * 4
    assert not [p for p in artifact.parent.iterdir() if p != artifact], "something was left behind"
    assert not [p for p in artifact.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_transformers_loads_it(artifact: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import optim.larosa.auto  # noqa: F401

    exact = AutoModelForCausalLM.from_pretrained(artifact)
    ids = larosa_models.ids()
    before = logits(larosa_models.model("llama"), ids)
    with torch.inference_mode():
        after = exact(input_ids=ids).logits
        made = exact.generate(ids[:1], max_new_tokens=4, do_sample=False)
    assert float((after - before).abs().max() / before.std()) < 1e-4
    assert made.shape[1] <= ids.shape[1] + 4
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    assert tokenizer("ab").input_ids == larosa_models.model("llama").tokenizer("ab").input_ids
    sparse = AutoModelForCausalLM.from_pretrained(artifact, sparsity=0.5, sparsify_prefill=True)
    with torch.inference_mode():
        assert not torch.equal(sparse(input_ids=ids).logits, after)
    with pytest.raises(TypeError, match="not loaded with sparsitty"):
        AutoModelForCausalLM.from_pretrained(artifact, sparsitty=0.5)
    with pytest.raises(InputError, match="from 0 to below 1"):
        AutoModelForCausalLM.from_pretrained(artifact, sparsity=1.5)


@pytest.mark.parametrize("architecture", larosa_models.KNOWN)
def test_transformers_loads_every_architecture(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    import optim.larosa.auto  # noqa: F401

    lm = larosa_models.model(architecture)
    folder = prepared(lm, tmp_path)
    ids = larosa_models.ids()
    applied = logits(Larosa(artifact=str(folder), sparsity=0).apply(lm), ids)
    with torch.inference_mode():
        loaded = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    assert torch.equal(applied, loaded)


def test_a_sparse_model_is_not_saved_as_a_plain_one(artifact: Path, tmp_path: Path) -> None:
    made = Larosa(artifact=str(artifact), sparsity=0.4).apply(larosa_models.model("llama"))
    with pytest.raises(InputError, match="its artifact is what was saved"):
        made.model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    larosa_models.model("llama").model.save_pretrained(tmp_path / "base")


def test_the_same_text_gives_the_same_weights(artifact: Path, tmp_path: Path) -> None:
    again = prepared(
        larosa_models.model("llama"), tmp_path, held_out=2, break_even=False,
        levels=(0.4, 0.6),
    )  # fmt: skip
    for path in sorted(again.glob("*.safetensors")):
        assert path.read_bytes() == (artifact / path.name).read_bytes()
    assert Artifact.open(again).manifest.levels == Artifact.open(artifact).manifest.levels


def test_weights_are_mapped_and_not_read(artifact: Path) -> None:
    made = Larosa(artifact=str(artifact), sparsity=0.4).apply(larosa_models.model("llama"))
    weight = made.model.model.layers[0].layer.self_attn.q_proj.wt_DN
    maps = Path("/proc/self/maps").read_text().splitlines()
    address = weight.data_ptr()
    for line in maps:
        low, high = (int(bound, 16) for bound in line.split()[0].split("-"))
        if low <= address < high:
            assert line.endswith("layers-00000.safetensors")
            return
    raise AssertionError("the weight lies in no mapping")


def test_sparsities_of_one_artifact_share_their_weights(artifact: Path) -> None:
    lm = larosa_models.model("llama")
    one, two = (Larosa(artifact=str(artifact), sparsity=s).apply(lm) for s in (0.4, 0.6))
    mine, others = dict(one.model.named_parameters()), dict(two.model.named_parameters())
    assert mine.keys() == others.keys()
    assert all(mine[name] is others[name] for name in mine)


# --- what is refused -----------------------------------------------------------------------------


def test_no_artifact(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none")
    assert "optrial prepare larosa" in str(error)
    (tmp_path / "empty").mkdir()
    assert "has no larosa.json" in str(refusal(tmp_path / "empty"))


def test_an_artifact_of_another_model(artifact: Path) -> None:
    error = refusal(artifact, "mistral")
    assert "was made from another model" in str(error)
    assert error.field == "optimizations.larosa.artifact"


def test_a_file_that_was_changed(copied: Path) -> None:
    path = copied / "layers-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    error = refusal(copied)
    assert error.source == str(path)
    assert "sha256 differs" in str(error)
    path.unlink()
    assert "is missing" in str(refusal(copied))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model_type": "opt"}, "'opt' is not known"),
        ({"format": 2}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"levels": []}, "levels: there are none"),
        ({"dtype": "float64"}, "dtype"),
        ({"folds": False}, "folds"),
        ({"adapted": [0, 1, 2]}, "layers.2.adapter"),
        ({"files": {}}, "lacks the tensor"),
        ({"levels": [{"sparsity": 0.4, "sites": [{"h1": 2.0}]}]}, "levels.0.sites.0.h1"),
        ({"levels": [{"sparsity": 0.4, "sites": [{"h1": 0.4}]}]}, "not one share for each"),
        ({"files": {"../x": {"num_bytes": 1, "sha256": ""}}}, "outside of its folder"),
    ],
)
def test_a_manifest_that_is_none(copied: Path, change: dict[str, object], problem: str) -> None:
    path = copied / "larosa.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert problem in str(refusal(copied))
    path.write_text("{")
    assert "larosa.json" in str(refusal(copied))


def test_narrower_weights_than_the_model(tmp_path: Path) -> None:
    half = larosa_models.model("llama", torch.bfloat16)
    folder = prepared(half, tmp_path)
    manifest = json.loads((folder / "larosa.json").read_text())
    manifest["input"] = larosa_models.model("llama").identity()
    (folder / "larosa.json").write_text(json.dumps(manifest))
    assert "--dtype float32" in str(refusal(folder))


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, float("nan"), "much"])
def test_sparsities_out_of_range(artifact: Path, sparsity: object) -> None:
    with pytest.raises(InputError) as caught:
        optimization("larosa", {"artifact": str(artifact), "sparsity": sparsity})
    assert caught.value.field == "optimizations.larosa.sparsity"


def test_text_that_is_too_short(tmp_path: Path) -> None:
    lm = larosa_models.model("llama")
    preparation = LarosaPreparation.model_validate(QUICK)
    with pytest.raises(InputError, match="too short: it has 201 tokens") as caught:
        preparation.run(lm, ["x" * 200], tmp_path / "out", source="test")
    assert caught.value.field == "--data"
    with pytest.raises(InputError, match="has 0 tokens"):
        preparation.run(lm, [], tmp_path / "out", source="test")
    assert not list(tmp_path.iterdir())


def test_activations_that_are_not_finite(tmp_path: Path) -> None:
    import copy

    lm = larosa_models.model("llama")
    broken = copy.deepcopy(lm.model)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    from optim.model import wrap

    with pytest.raises(InputError, match="h4 of layer 1 is not finite"):
        prepared(wrap(broken, lm.tokenizer), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "mine").write_text("kept")
    with pytest.raises(InputError, match="not empty"):
        prepared(larosa_models.model("llama"), tmp_path)
    assert (tmp_path / "artifact" / "mine").read_text() == "kept"


def test_a_device_without_a_kernel(artifact: Path) -> None:
    from optim.larosa.kernels.choice import kernels_for

    with pytest.raises(InputError, match="no kernel for meta"):
        kernels_for(torch.device("meta"))


def test_weights_that_are_not_finite_where_no_site_sees_them(tmp_path: Path) -> None:
    import copy

    from optim.model import wrap

    lm = larosa_models.model("llama")
    broken = copy.deepcopy(lm.model)
    with torch.no_grad():
        broken.lm_head.weight[3, 5] = torch.nan
    with pytest.raises(InputError, match="logits are not finite"):
        prepared(wrap(broken, lm.tokenizer), tmp_path, held_out=1)
    assert not list(tmp_path.iterdir())


def test_a_link_to_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "artifact").symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match="a link or a mount point"):
        prepared(larosa_models.model("llama"), tmp_path)


def test_float16_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not work on float16"):
        prepared(larosa_models.model("llama", torch.float16), tmp_path)
