"""A task's messages as one prompt, by the chat template of the trial's model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.plan import ModelSource
from optim.errors import InputError

Render = Callable[..., str]
"""`(messages, add_generation_prompt=True)` -> prompt, as lm-eval calls it."""


def renderer(model: ModelSource) -> Render:
    """By the model's template; InputError where it has none, or one that refuses the messages."""
    from optim.model import load_tokenizer

    tokenizer: Any = load_tokenizer(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the model's tokenizer has no chat template",
            source=model.path,
            field="chat",
            mend="Leave `chat` out, or take a model that is made for chats",
        )

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        prompt: str = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return prompt

    return render
