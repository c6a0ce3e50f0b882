"""Whether a completion ends in a loop: the commonest way in which a text goes wrong."""

from __future__ import annotations

MIN_REPEATS = 3
"""Times that a block stands at the end, back to back."""
MIN_BYTES = 24
"""Of UTF-8 that these repeats fill, at least: six tokens of about four bytes."""
_TAIL = 3
"""Characters whose earlier places say which blocks come into question."""


def ends_in_loop(text: str) -> bool:
    """Whether the last part of a text is one block of characters, repeated.

    The block stands at the end at least three times back to back, and so often that its repeats
    fill 24 bytes of UTF-8. One that is a single character (a rule of dashes, blank lines) has to
    fill half of the text as well. A last character that was cut short counts for nothing.

    Holtzman et al., The Curious Case of Neural Text Degeneration (ICLR 2020), call a generation
    repetitive where a phrase of two tokens or more is repeated at least three times at its end.
    Characters instead of tokens measure all vocabularies alike, and a last repeat that the budget
    cut short still counts, as a block may begin anywhere in the phrase.
    """
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    num_chars, num_bytes = len(text), len(text.encode())
    if num_bytes < MIN_BYTES:
        return False
    run = num_chars - len(text.rstrip(text[-1]))
    if run * len(text[-1].encode()) >= max(MIN_BYTES, num_bytes / 2):
        return True
    tail = text[-_TAIL:]
    start = text.rfind(tail, 0, num_chars - 1)
    while start >= 0:
        size = num_chars - _TAIL - start
        if MIN_REPEATS * size > num_chars:
            return False
        if size > run and _is_repeated(text, text[-size:]):
            return True
        start = text.rfind(tail, 0, start + _TAIL - 1)
    return False


def _is_repeated(text: str, block: str) -> bool:
    repeats = max(MIN_REPEATS, -(-MIN_BYTES // len(block.encode())))
    return text.endswith(block * repeats)
