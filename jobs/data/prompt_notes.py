"""What a tokenizer does around prompts that whoever wrote them may not know of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.formatting import plural
from optim.models.prompt_ids import added_start, closing_ids, starts_twice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HEAD_CHARS = 64
"""How far a start token is looked for, behind white space that a tokenizer may strip."""


def prompt_notes(
    rows: Sequence[Mapping[str, Any]], tokenizer: Callable[[], PreTrainedTokenizerBase]
) -> tuple[str, ...]:
    """Sentences on the rows of `inputs/prompts.parquet`; `tokenizer` is the model's.

    Chats are left out: their template writes all special tokens, and nothing is added to them.
    """
    plain = [row for row in rows if row["error"] is None and not row["is_chat"]]
    if not plain:
        return ()
    made = tokenizer()
    notes = []
    if closing := closing_ids(made):
        shown = "".join(map(str, made.convert_ids_to_tokens(closing)))
        notes.append(
            f"the tokenizer closes every text with {shown}, which is left out behind prompts and "
            "scored texts, so that they can go on"
        )
    start = added_start(made)
    if start is not None:
        notes += _double_starts(plain, made, str(made.convert_ids_to_tokens(start)))
    return tuple(notes)


def _double_starts(
    plain: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, start: str
) -> list[str]:
    counts, doubled = Counter(row["dataset"] for row in plain), Counter[str]()
    for row in plain:
        head = (row["prompt"] or "")[: len(start) + _HEAD_CHARS]
        if start in head and starts_twice(tokenizer, head):
            doubled[row["dataset"]] += 1
    return [
        f"{count:,} of {plural(counts[name], 'prompt')} of {name} begin with {start}, which the "
        "tokenizer adds as well, so that they get it twice: give chats in `messages` or with "
        "`chat: true`, or leave it out of the text"
        for name, count in doubled.items()
    ]
