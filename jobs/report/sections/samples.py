"""Sample completions on the page, side by side, with the first difference marked."""

from __future__ import annotations

from typing import Any

from jobs.formatting import plural
from jobs.report.document import Fold, Part, Prose, Samples, Section

Data = dict[str, Any]

_OPEN = 2


def texts(data: Data) -> Section:
    """What every configuration wrote to the same prompts with the same seed."""
    samples = [_sample(sample) for sample in data["samples"]]
    heading = "Sample completions"
    if not samples:
        return Section("samples", heading, [Prose("There are no completions yet.", "nothing")])
    parts: list[Part] = [
        Prose(
            "The same prompt and seed under every configuration; prompts whose texts differ come "
            "first. What is alike up to the first difference from the reference is pale, and what "
            "follows is marked.",
            "quiet",
        ),
        Samples(samples[:_OPEN]),
    ]
    if samples[_OPEN:]:
        parts.append(Fold(f"{plural(len(samples) - _OPEN, 'more prompt')}",
                          [Samples(samples[_OPEN:])]))  # fmt: skip
    return Section("samples", heading, parts)


def _sample(sample: Data) -> Data:
    return {
        "title": f"{sample['dataset']} · {sample['prompt_id']} · seed {sample['seed']}",
        "prompt": sample["prompt"],
        "target": sample["target"],
        "texts": [_text(text) for text in sample["texts"]],
    }


def _text(found: Data) -> Data:
    """`alike` and `differing` are the text in two; `said` is where they part, in words."""
    text, at = found["text"], found["differs_at"]
    if text is None:
        error = f"Failed: {found['error']}" if found["error"] else "There is no text."
        return {**found, "alike": "", "differing": "", "said": error, "is_cut": False}
    split = len(text) if at is None else at
    # A reference has nothing to be alike with: it is shown as it is.
    alike, differing = (text[:split], text[split:]) if found["is_compared"] else ("", "")
    return {
        **found,
        "alike": alike,
        "differing": differing,
        "said": _said(found, len(text)),
        "is_cut": found["num_chars"] > len(text),
    }


def _said(found: Data, shown: int) -> str:
    at, vs = found["differs_at"], found["vs"]
    if vs is None:
        return "reference"
    if not found["is_compared"]:
        return f"{vs} has no text to compare with"
    if at is None:
        return f"the same text as {vs}"
    if at >= found["num_chars"]:
        return f"ends at character {at + 1:,}, where {vs} goes on"
    beyond = ", beyond what is shown" if at >= shown else ""
    return f"differs from {vs} from character {at + 1:,} on{beyond}"
