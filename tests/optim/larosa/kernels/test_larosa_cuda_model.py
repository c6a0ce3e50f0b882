"""A whole sparse model over the CUDA kernels, compiled into one graph, in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import larosa_models
import pytest
import torch
from test_larosa_rotation import prepared
from transformers import StaticCache
from triton_interpreter import DEVICE, HAS_DEVICE, interpreter  # noqa: F401  (of every test here)

from optim.larosa.kernels.choice import CudaKernels
from optim.larosa.optimization import Larosa
from optim.larosa.sparse import builder as build
from optim.model import LanguageModel


@pytest.fixture
def sparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LanguageModel, LanguageModel]:
    """The same sparse model over the CPU's and over the CUDA kernels."""
    lm = larosa_models.model("llama")
    chosen = Larosa(artifact=str(prepared(lm, tmp_path)), sparsity=0.5, sparse_rows=8)
    by_cpu = chosen.apply(lm)
    monkeypatch.setattr(build, "kernels_for", lambda device: CudaKernels())
    return by_cpu, chosen.apply(lm)


@pytest.mark.skipif(HAS_DEVICE, reason="compares the interpreter with the CPU's kernels")
def test_a_compiled_step_is_that_of_the_cpu(
    sparse: tuple[LanguageModel, LanguageModel],
) -> None:
    by_cpu, by_cuda = sparse
    ids = larosa_models.ids(2, 7).to(DEVICE)
    torch.compiler.reset()
    step = torch.compile(by_cuda.model.forward, fullgraph=True, backend="aot_eager")
    logits = []
    for model, call in ((by_cpu.model, by_cpu.model), (by_cuda.model, step)):
        cache = StaticCache(config=model.config, max_cache_len=16)
        with torch.inference_mode():
            model(input_ids=ids[:, :5], past_key_values=cache, use_cache=True)
            for place in (5, 6):
                out = call(
                    input_ids=ids[:, place : place + 1],
                    past_key_values=cache,
                    position_ids=torch.tensor([[place]], device=DEVICE),
                    use_cache=True,
                )
        logits.append(out.logits)
    assert float((logits[0] - logits[1]).abs().max() / logits[0].std()) < 1e-4
    assert by_cuda.meter is not None
    assert by_cuda.meter.facts() == {
        "sparsity": pytest.approx(0.5, abs=1 / 64), "layer_bytes": None,
        "skipped_bytes": None, "select_s": None,
    }  # fmt: skip
