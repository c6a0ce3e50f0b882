"""The byte tokenizer of `tiny_models` with special tokens of its own around every text."""

from __future__ import annotations

from tiny_models import END, tokenizer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

START = 257
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def wrapping(template: str) -> PreTrainedTokenizerFast:
    """`template` is such as `<start> $A <end>`; chats are rendered with the start token."""
    made = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    special = [("<start>", START), ("<end>", END)]
    made.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<end>",
        bos_token="<start>",
        pad_token="<end>",
        chat_template=CHAT,
    )
