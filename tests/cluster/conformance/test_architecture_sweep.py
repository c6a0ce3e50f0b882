"""Every causal LM class of transformers is run right with every cache, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from architecture_kinds import CLASSES, KINDS, outcome

ENCODERS = (
    "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta",
    "xlm-roberta-xl", "xmod", "bert-generation", "reformer",
)  # fmt: skip
SAMPLE = {
    "llama": "equal",
    "gemma2": "equal",
    "gpt_oss": "equal",
    "bloom": "equal",
    "gpt_neo": "batch 1: equal, batch 4: refused",
    "openai-gpt": "refused",
    "mllama": "refused",
    "bert": "refused: bert is an encoder",
    "mamba2": "refused: mamba2 keeps a state",
}


@pytest.mark.parametrize("kind", SAMPLE)
def test_some_classes(kind: str, tmp_path: Path) -> None:
    assert outcome(kind, tmp_path).startswith(SAMPLE[kind])


def _shown(kind: str, found: str) -> None:
    print(f"{kind:28} {CLASSES[kind]:40} {found[:160]}", flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_class(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = outcome(kind, tmp_path)
    with capsys.disabled():
        _shown(kind, found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODERS)
def test_every_encoder_as_a_decoder(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = outcome(kind, tmp_path, is_decoder=True)
    with capsys.disabled():
        _shown(kind, f"(is_decoder) {found}")
