"""What a model's author wants it sampled by: said, since a trial samples by its own spec."""

from __future__ import annotations

import json
from typing import Any

# What decides which token is chosen, with the value at which it decides nothing.
_NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "penalty_alpha": None,
    "guidance_scale": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
}
_SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p", "typical_p"})


def author_settings(path: str, *, revision: str | None = None) -> dict[str, Any]:
    """The settings of a model's generation_config.json that decide something, by their names.

    Empty where there is none, or none that can be read. Those of sampling count only where the
    author samples.
    """
    from optim.model import resolve  # slow to import, and who reads a report has no need of it

    try:
        text = (resolve(path, revision=revision) / "generation_config.json").read_text("utf-8")
        given = json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    if not isinstance(given, dict):
        return {}
    return {
        name: given[name]
        for name, neutral in _NEUTRAL.items()
        if given.get(name) not in (None, neutral, [])
        and (name not in _SAMPLING or given.get("do_sample"))
    }


def said(settings: dict[str, Any]) -> str | None:
    """One sentence; None where there is nothing to say."""
    if not settings:
        return None
    shown = ", ".join(f"{name} {_short(value)}" for name, value in settings.items())
    return f"the model's author generates by {shown}: not used here, where the spec decides"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
