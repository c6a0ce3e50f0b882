"""A domain's vocabulary, sparse activations and virtual memory for the cache, on one model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from test_adaptivocab_embeddings import TEXTS, model
from test_adaptivocab_preparation import prepared

from cluster.engine.completion import Completion, Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.adaptivocab.optimization import Adaptivocab
from optim.errors import InputError
from optim.larosa.optimization import Larosa
from optim.larosa.preparation import LarosaPreparation
from optim.model import LanguageModel, load
from optim.optimization import Optimization
from optim.registry import apply_all
from optim.vattention.optimization import VAttention

ARCHITECTURES = ("llama", "mistral", "qwen3", "phi")
PROMPTS = [text[: 20 + 7 * place] for place, text in enumerate(TEXTS[:8])]


class Prepared(NamedTuple):
    """A model with the artifacts of both, each made for what it is applied to."""

    lm: LanguageModel
    vocabulary: Path
    sparse: Path
    """Made on the adapted model."""

    def optimizations(self, *, paged: bool = True) -> list[Optimization]:
        """In another order than that of application."""
        made: list[Optimization] = [
            Larosa(artifact=str(self.sparse), sparsity=0.4),
            Adaptivocab(artifact=str(self.vocabulary)),
        ]
        return [VAttention(), *made] if paged else made


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    lm, folder = model(request.param), tmp_path_factory.mktemp("together")
    vocabulary = prepared(lm, folder, replace=60, control=False)
    adapted = load(str(vocabulary))
    return Prepared(lm, vocabulary, sparse(adapted, folder / "sparse"))


def sparse(lm: LanguageModel, out: Path) -> Path:
    settings = {"sequences": 4, "tokens": 64, "held_out": 1, "levels": (0.4,), "break_even": False}
    LarosaPreparation.model_validate(settings).run(lm, TEXTS, out, source="test")
    return out


def generated(lm: LanguageModel, temperature: float = 0.8) -> list[Completion]:
    params = SamplingParams(temperature=temperature, max_new_tokens=24)
    requests = [Request(str(i), prompt, params, seed=i) for i, prompt in enumerate(PROMPTS)]
    done = list(Engine(lm, batch_size=3).generate(requests))
    return sorted(done, key=lambda each: each.request.prompt_id)


def test_all_three_generate(made: Prepared) -> None:
    lm = apply_all(made.lm, made.optimizations())
    new = (lm.vocabulary.keys_V > 1 << 61).nonzero().flatten().tolist()
    completions = generated(lm)
    assert len(completions) == len(PROMPTS)
    used: set[int] = set()
    for done in completions:
        assert done.error is None
        assert done.ids
        assert done.text == lm.tokenizer.decode(
            done.ids[:-1] if done.ended_by_token else done.ids, skip_special_tokens=True
        )
        used.update(done.ids)
    assert used & set(new), "no new token was generated"
    facts = lm.meter.facts() if lm.meter is not None else {}
    assert facts, "nothing says that it is sparse"


def test_virtual_memory_changes_no_token(made: Prepared) -> None:
    paged = apply_all(made.lm, made.optimizations())
    plain = apply_all(made.lm, made.optimizations(paged=False))
    assert paged.new_cache is not None
    assert plain.new_cache is None
    for temperature in (0.0, 1.2):
        one, two = generated(paged, temperature), generated(plain, temperature)
        assert [done.ids for done in one] == [done.ids for done in two]
        assert [done.text for done in one] == [done.text for done in two]


def test_the_order_given_is_no_matter(made: Prepared) -> None:
    one = apply_all(made.lm, made.optimizations())
    two = apply_all(made.lm, reversed(made.optimizations()))
    assert one.identity() == two.identity()
    assert [done.ids for done in generated(one)] == [done.ids for done in generated(two)]


def test_sparsity_made_on_the_base_is_refused_on_the_adapted_model(
    made: Prepared, tmp_path: Path
) -> None:
    on_base = sparse(made.lm, tmp_path / "base")
    chosen: list[Optimization] = [
        Larosa(artifact=str(on_base)),
        Adaptivocab(artifact=str(made.vocabulary)),
    ]
    with pytest.raises(InputError, match="was made from another model") as caught:
        apply_all(made.lm, chosen)
    assert caught.value.field == "optimizations.larosa.artifact"
    with pytest.raises(InputError, match="was made from another model"):
        Larosa(artifact=str(made.sparse)).apply(made.lm)
    assert generated(Larosa(artifact=str(on_base)).apply(made.lm))


def test_without_sparsity_nothing_is_lost_but_rounding(made: Prepared) -> None:
    """Rotated at sparsity 0, the adapted model's logits are its own."""
    adapted = Adaptivocab(artifact=str(made.vocabulary)).apply(made.lm)
    exact = Larosa(artifact=str(made.sparse), sparsity=0).apply(adapted)
    ids = torch.tensor([adapted.tokenizer(TEXTS[7][:120])["input_ids"]])
    with torch.inference_mode():
        before, after = (each.model(input_ids=ids).logits for each in (adapted, exact))
    assert float((after - before).abs().max() / before.std()) < 1e-4
    assert torch.equal(exact.vocabulary.keys_V, adapted.vocabulary.keys_V)
