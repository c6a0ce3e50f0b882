"""Rows for new tokens: what they are made of, and that nothing else changes."""

from __future__ import annotations

import copy
import pydoc_data.topics
from functools import cache
from pathlib import Path

import larosa_models
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from optim.adaptivocab.training.embeddings import Init, Side, Tied, extend, weights
from optim.adaptivocab.training.model_folders import write_model
from optim.model import LanguageModel, load, weight_bytes, wrap

TOPICS = pydoc_data.topics.topics
TEXTS = tuple(part for name in sorted(TOPICS) for part in TOPICS[name].split("\n\n\n"))
"""The language reference of the running Python, in some 200 texts."""

SIZE, ROWS = 500, 512
END, START = 0, 1
EXPANSIONS = {300: (40, 41), 301: (299, 40, 7), 302: (50, 50, 50, 60, 90), ROWS + 8: (41, 77)}
"""New ids in the place of old ones, and one beyond the model's rows."""
NEW = list(EXPANSIONS)
KEPT = [i for i in range(ROWS) if i not in EXPANSIONS]
TIED = ("llama-tied", "gpt2", "gemma3")


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges, cut by GPT-2's expression; it has an end and a start token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<end>", "<start>"],
        show_progress=False,
    )
    made.train_from_iterator(TEXTS[:60], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", bos_token="<start>", pad_token="<end>"
    )


@cache
def model(architecture: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A random model with that tokenizer, and a few rows that no token has."""
    torch.manual_seed(sum(map(ord, architecture)))
    made = larosa_models.KNOWN[architecture]()
    made.resize_token_embeddings(ROWS, mean_resizing=False)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.12)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
    for config in (made.config, made.generation_config):
        config.eos_token_id = config.pad_token_id = END
        config.bos_token_id = START
    return wrap(made.to(dtype), tokenizer())


def logits(lm: LanguageModel, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = lm.model(input_ids=ids).logits
    return found


def rows(lm: LanguageModel) -> dict[Side, Tensor]:
    return {
        "input": lm.model.get_input_embeddings().weight.detach(),
        "head": lm.model.get_output_embeddings().weight.detach(),
    }


def extended(
    lm: LanguageModel, *, init: Init = "exp", tied: Tied = "untie", seed: int = 0
) -> LanguageModel:
    return wrap(extend(lm.model, EXPANSIONS, init=init, tied=tied, seed=seed), lm.tokenizer)


# --- what a row is made of -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("exp", [0.881, 0.119]),
        ("exp", [0.867, 0.117, 0.016]),
        ("half", [2 / 3, 1 / 3]),
        ("half", [4 / 7, 2 / 7, 1 / 7]),
        ("mean", [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_weights_are_the_papers_and_its_codes(init: Init, expected: list[float]) -> None:
    head = weights(len(expected), init, "head")
    assert head.tolist() == pytest.approx(expected, abs=6e-4)
    assert float(head.sum()) == pytest.approx(1, abs=1e-12)
    assert weights(len(expected), init, "input").tolist() == head.tolist()[::-1]


@pytest.mark.parametrize("init", ["exp", "half", "mean"])
@pytest.mark.parametrize("architecture", larosa_models.KNOWN)
def test_new_rows_are_weighted_sums_and_kept_ones_keep_their_bits(
    architecture: str, init: Init
) -> None:
    lm = model(architecture)
    made = extended(lm, init=init)
    for side, old_VD in rows(lm).items():
        new_VD = rows(made)[side]
        assert new_VD.shape == (ROWS + 9, old_VD.shape[1])
        assert torch.equal(new_VD[KEPT], old_VD[KEPT])
        for number, parts in EXPANSIONS.items():
            shares = weights(len(parts), init, side).tolist()
            expected_D = sum(w * old_VD[i].double() for w, i in zip(shares, parts, strict=True))
            torch.testing.assert_close(new_VD[number].double(), expected_D, rtol=1e-5, atol=1e-7)
    assert not rows(made)["head"][ROWS : ROWS + 8].any(), "rows of no token are zero"


@pytest.mark.parametrize("architecture", larosa_models.KNOWN)
def test_the_model_that_is_given_stays_as_it_is(architecture: str) -> None:
    lm, ids = model(architecture), larosa_models.ids()
    before, config = logits(lm, ids), lm.model.config.to_dict()
    stored = copy.deepcopy(lm.model.state_dict())
    made = extended(lm)
    assert torch.equal(logits(lm, ids), before)
    assert lm.model.config.to_dict() == config
    assert all(torch.equal(lm.model.state_dict()[name], each) for name, each in stored.items())
    by_token = {id(each.weight) for each in (made.model.get_input_embeddings(),
                                             made.model.get_output_embeddings())}  # fmt: skip
    theirs = {id(parameter) for parameter in lm.model.parameters()}
    others = [p for p in made.model.parameters() if id(p) not in by_token]
    own = [p for p in others if id(p) not in theirs]
    has_bias = getattr(lm.model.get_output_embeddings(), "bias", None) is not None
    assert len(own) == has_bias, "only what has a row for each token is its own"
    assert weight_bytes(made.model, lm.model)[0] > 0


@pytest.mark.parametrize("architecture", larosa_models.KNOWN)
def test_kept_tokens_are_predicted_as_before(architecture: str) -> None:
    lm = model(architecture)
    ids = torch.tensor([KEPT[:80], KEPT[300:380]])
    before, after = logits(lm, ids), logits(extended(lm), ids)
    torch.testing.assert_close(after[..., KEPT], before[..., KEPT], rtol=1e-4, atol=1e-5)


def test_bits_are_kept_in_bfloat16(tmp_path: Path) -> None:
    lm = model("llama", torch.bfloat16)
    made = extended(lm)
    for side, old_VD in rows(lm).items():
        assert rows(made)[side].dtype == torch.bfloat16
        assert torch.equal(rows(made)[side][KEPT], old_VD[KEPT])
    write_model(made.model, tmp_path, torch.bfloat16)
    stored = load(str(_with_tokenizer(tmp_path)), dtype="bfloat16").model.state_dict()
    assert all(torch.equal(stored[name], each) for name, each in made.model.state_dict().items())


def test_random_rows_are_drawn_by_the_seed() -> None:
    lm = model("llama")
    one, same, other = (rows(extended(lm, init="random", seed=seed)) for seed in (0, 0, 1))
    for side, old_VD in rows(lm).items():
        assert torch.equal(one[side], same[side])
        assert not torch.equal(one[side][NEW], other[side][NEW])
        assert torch.equal(one[side][KEPT], old_VD[KEPT])
        assert float(one[side][NEW].std()) == pytest.approx(float(old_VD.std()), rel=0.2)
    assert not torch.equal(one["input"][NEW], one["head"][NEW])


# --- one matrix for both -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TIED)
def test_a_tied_matrix_becomes_two(architecture: str) -> None:
    lm = model(architecture)
    assert lm.model.config.tie_word_embeddings
    made = extended(lm)
    found = rows(made)
    assert not made.model.config.tie_word_embeddings
    assert found["input"].data_ptr() != found["head"].data_ptr()
    assert torch.equal(found["input"][KEPT], found["head"][KEPT])
    assert not torch.equal(found["input"][NEW], found["head"][NEW])


@pytest.mark.parametrize("architecture", TIED)
def test_a_tied_matrix_can_stay_one_with_the_mean_of_both_rows(architecture: str) -> None:
    lm = model(architecture)
    made, apart = extended(lm, tied="symmetric"), rows(extended(lm))
    assert made.model.config.tie_word_embeddings
    assert made.model.get_output_embeddings().weight is made.model.get_input_embeddings().weight
    found = rows(made)["head"]
    torch.testing.assert_close(found[NEW], (apart["input"][NEW] + apart["head"][NEW]) / 2)
    assert torch.equal(found[KEPT], rows(lm)["head"][KEPT])


def test_symmetric_changes_nothing_where_there_are_two_matrices() -> None:
    one = rows(extended(model("llama"), tied="untie"))
    two = rows(extended(model("llama"), tied="symmetric"))
    assert all(torch.equal(one[side], two[side]) for side in one)


# --- the model around them -----------------------------------------------------------------------


def test_the_bias_of_a_head_is_that_of_the_first_part() -> None:
    lm = model("phi")
    old_V = lm.model.get_output_embeddings().bias.detach()
    new_V = extended(lm).model.get_output_embeddings().bias.detach()
    assert torch.equal(new_V[KEPT], old_V[KEPT])
    firsts = [parts[0] for parts in EXPANSIONS.values()]
    assert torch.equal(new_V[NEW], old_V[firsts])
    assert len(new_V) == ROWS + 9


def test_sizes_agree_wherever_they_stand() -> None:
    for architecture in larosa_models.KNOWN:
        made = extended(model(architecture)).model
        assert made.config.vocab_size == ROWS + 9
        assert made.get_input_embeddings().num_embeddings == ROWS + 9
        assert made.get_output_embeddings().out_features == ROWS + 9
        assert made.config.eos_token_id == END


def test_without_a_token_beyond_them_rows_are_as_many() -> None:
    inside = {number: parts for number, parts in EXPANSIONS.items() if number < ROWS}
    made = extend(model("llama").model, inside)
    assert made.get_input_embeddings().weight.shape[0] == made.config.vocab_size == ROWS
    same = extend(model("llama").model, {})
    ids = larosa_models.ids()
    assert torch.equal(logits(wrap(same, tokenizer()), ids), logits(model("llama"), ids))


def _with_tokenizer(folder: Path) -> Path:
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", ["untie", "symmetric"])
@pytest.mark.parametrize("architecture", larosa_models.KNOWN)
def test_a_saved_model_comes_back_with_the_same_logits(
    architecture: str, tied: Tied, tmp_path: Path
) -> None:
    made = extended(model(architecture), tied=tied)
    write_model(made.model, tmp_path, torch.float32)
    again = load(str(_with_tokenizer(tmp_path)))
    ids = torch.tensor([[*NEW, *KEPT[:60]]])
    assert torch.equal(logits(again, ids), logits(made, ids))
    assert again.model.config.tie_word_embeddings == made.model.config.tie_word_embeddings
    assert again.end_ids == {END}
