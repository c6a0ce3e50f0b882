"""Prompts for the demo model, cut from documentation that it was not trained on.

The files are written by whoever wants them, from the running Python's own documentation, so this
repository holds none of that text. Each line of a file is a JSON object: `id`, `prompt`, `target`
(the characters that follow the prompt in the same passage) and `source` (the document's name and
the passage's offset in it, in characters).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jobs.data.demo_corpus import Document, Domain, held_out_by_domain

PROMPT_DOMAINS: Final[tuple[Domain, ...]] = ("language", "networking", "data")

NUM_PER_DOMAIN: Final = 64

PROMPT_CHARACTERS: Final = (40, 400)
TARGET_CHARACTERS: Final = (100, 300)

# Ways of cutting, best first: the longest prompt and target in characters, and what passages after
# a document's first begin behind. Passages do not overlap, so where there is little held-out text
# they get shorter, and then begin at lines rather than paragraphs, before there are too few.
_CUTS: Final = (
    (400, 300, "\n\n"),
    (240, 200, "\n\n"),
    (120, 140, "\n\n"),
    (120, 140, "\n"),
)


class TooFewPassages(ValueError):
    """The held-out text of a domain cannot be cut into as many passages as were asked for."""


def write_prompts(folder: Path, num_per_domain: int = NUM_PER_DOMAIN) -> dict[str, Path]:
    """Write `<domain>.jsonl` for each of the three domains; return the paths by domain.

    The same Python and the same number give the same bytes. A file is complete or absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    for domain in PROMPT_DOMAINS:
        lines = [
            json.dumps(each, ensure_ascii=False, sort_keys=True)
            for each in prompts(domain, num_per_domain)
        ]
        path = folder / f"{domain}.jsonl"
        _replace(path, "".join(line + "\n" for line in lines))
        written[domain] = path
    return written


def prompts(domain: Domain, num_prompts: int) -> list[dict[str, str]]:
    """The domain's prompts, drawn from its held-out documents in the order of a hash."""
    if num_prompts < 1:
        raise ValueError(f"the number of prompts must be positive, not {num_prompts}")
    passages: list[dict[str, str]] = []
    for longest_prompt, longest_target, start in _CUTS:
        # By prompt, since two documents may begin a passage alike.
        distinct = {
            passage["prompt"]: passage
            for document in held_out_by_domain()[domain]
            for passage in _passages(document, longest_prompt, longest_target, start)
        }
        passages = list(distinct.values())
        if len(passages) >= num_prompts:
            break
    else:
        raise TooFewPassages(
            f"the held-out {domain} documents give {len(passages)} passages, "
            f"fewer than the {num_prompts} asked for"
        )
    chosen = sorted(passages, key=lambda each: _digest(each["source"]))[:num_prompts]
    return [{"id": f"{domain}-{number:04d}", **each} for number, each in enumerate(chosen)]


def _passages(
    document: Document, longest_prompt: int, longest_target: int, boundary: str
) -> Iterator[dict[str, str]]:
    """Passages from the document's beginning on, each later one starting behind `boundary`."""
    text = document.text
    lengths = random.Random(_digest(document.name))
    start = 0
    while True:
        start += len(text[start:]) - len(text[start:].lstrip())
        cut = _word_end(text, start + lengths.randint(PROMPT_CHARACTERS[0], longest_prompt))
        end = _word_end(text, cut + lengths.randint(TARGET_CHARACTERS[0], longest_target))
        prompt, target = text[start:cut], text[cut:end]
        fits = (
            PROMPT_CHARACTERS[0] <= len(prompt) <= PROMPT_CHARACTERS[1]
            and TARGET_CHARACTERS[0] <= len(target) <= TARGET_CHARACTERS[1]
        )
        if fits:
            yield {"prompt": prompt, "target": target, "source": f"{document.name}@{start}"}
        # A word without end may have pushed the cuts back to before the passage's start.
        behind = text.find(boundary, max(start + 1, end))
        if behind < 0:
            return
        start = behind + len(boundary)


def _word_end(text: str, wanted: int) -> int:
    """The last position up to `wanted` where a word ends, so that the rest begins with a space."""
    if wanted >= len(text):
        return len(text)
    position = wanted
    while position > 0 and not (text[position].isspace() and not text[position - 1].isspace()):
        position -= 1
    return position


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
