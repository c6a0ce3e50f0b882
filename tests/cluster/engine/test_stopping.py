"""Stop strings at the start of a text, whose first space a SentencePiece decoder drops."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from cluster.engine.stopping import StopFinder

WORDS = ["<unk>", "<s>", "</s>", "\u2581a", "\u2581Paris", "\u2581is", "is", ".", "a"]


def sentencepiece() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def cut(*words: str, stop: str) -> str | None:
    tokenizer = sentencepiece()
    ids = [WORDS.index(word) for word in words]
    found = [StopFinder(tokenizer).cut(ids[: n + 1], (stop,)) for n in range(len(ids))]
    return next((text for text in found if text is not None), None)


def test_a_stop_that_begins_with_a_space_is_found_at_the_start() -> None:
    assert cut("\u2581Paris", "\u2581is", stop=" Paris") == ""
    assert cut("\u2581a", "\u2581Paris", stop=" Paris") == "a"
    assert cut("\u2581a", "\u2581is", ".", stop=".") == "a is"
    assert cut("\u2581a", "\u2581is", stop=" Paris") is None


def test_texts_are_given_without_special_tokens() -> None:
    assert cut("\u2581a", "<s>", "\u2581is", ".", stop=".") == "a is"
    assert cut("\u2581a", "<s>", "\u2581is", stop="<s>") == "a"


def test_every_token_that_decoding_leaves_out_is_left_out_before_a_stop() -> None:
    tokenizer = sentencepiece()
    tokenizer.add_tokens([AddedToken("<|header|>", special=True)])
    header = tokenizer.convert_tokens_to_ids("<|header|>")
    assert header not in tokenizer.all_special_ids, "it has no role of its own"
    ids = [WORDS.index("\u2581a"), header, WORDS.index("\u2581is"), WORDS.index(".")]
    assert tokenizer.decode(ids[:3], skip_special_tokens=True) == "a is"
    assert StopFinder(tokenizer).cut(ids, (".",)) == "a is"
