"""What a model's author wants it sampled by: said, since a trial samples by its own spec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optim.errors import InputError

FILE = "generation_config.json"

# What decides which tokens there are, with the values at which it decides nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (0,),
    "min_p": (0,),
    "typical_p": (1,),
    "top_h": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "bad_words_ids": (),
    "sequence_bias": ({},),
    "force_words_ids": (),
    "constraints": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "dola_layers": (),
    "token_healing": (False,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_length": (20,),
    "max_new_tokens": (),
    "stop_strings": (),
}
_SAMPLING = frozenset(
    {"top_p", "top_k", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff"}
)
FIELDS = {
    "temperature": "temperature",
    "do_sample": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "suppress_tokens": "suppress_tokens",
    "max_new_tokens": "max_new_tokens",
    "stop_strings": "stop",
}
"""Their names -> the fields of a spec's `generation` that mean the same."""
_BOUNDS = frozenset({"max_length"})
"""Ends that the context window or `max_new_tokens` sets here."""


def author_settings(path: str, *, revision: str | None = None) -> dict[str, Any]:
    """The settings of a model's generation_config.json that decide something, by their names.

    Of its config.json where it has none, as transformers takes them. Empty where nothing can be
    read. Those of sampling count only where the author samples, and then its temperature does.
    """
    try:
        return _decisive(_read(path, revision))
    except InputError:
        return {}


def author_fields(path: str, *, revision: str | None = None) -> dict[str, Any]:
    """The same as fields of a spec's `generation`.

    InputError where the file cannot be read, or asks for what no field means.
    """
    settings = _decisive(_read(path, revision))
    others = sorted(settings.keys() - FIELDS.keys() - _BOUNDS)
    if others:
        raise InputError(
            f"the model's author generates by {', '.join(others)}, which the engine does not have",
            source=path,
            field="generation.from_model",
            mend="Leave it out, and set in `generation` what is to be taken: "
            + (_shown({n: v for n, v in settings.items() if n in FIELDS}) or "nothing else is set"),
        )
    fields = {FIELDS[name]: value for name, value in settings.items() if name in FIELDS}
    if settings.get("do_sample") is False:
        fields["temperature"] = 0.0
    return fields


def _read(path: str, revision: str | None) -> dict[str, Any]:
    from optim.model import resolve  # slow to import, and who reads a report has no need of it

    folder = resolve(path, revision=revision)
    file = folder / FILE
    if not file.exists():
        file = folder / "config.json"
    return _object(file)


def _object(file: Path) -> dict[str, Any]:
    try:
        given = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {error}"
    else:
        if isinstance(given, dict):
            return given
        problem = "holds no settings: it is no JSON object"
    raise InputError(
        problem,
        source=file,
        field="generation.from_model",
        mend="Mend the file, or leave `from_model` out",
    )


def _decisive(given: Mapping[str, Any]) -> dict[str, Any]:
    samples = given.get("do_sample")
    found: dict[str, Any] = {}
    if samples:
        temperature = given.get("temperature")
        found["temperature"] = 1.0 if temperature is None else temperature
    elif samples is False:
        found["do_sample"] = False
    for name, neutral in _NEUTRAL.items():
        value = given.get(name)
        if value in (None, [], *neutral) or (name in _SAMPLING and not samples):
            continue
        found[name] = value
    return found


def said(settings: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> str | None:
    """One sentence on what is not used; None where there is nothing to say.

    `generation` is the trial's, as the plan has it: what agrees with it is used.
    """
    unused = {n: v for n, v in settings.items() if not _is_used(n, v, generation or {})}
    if not unused:
        return None
    shown = _shown(unused)
    return f"the model's author generates by {shown}: not used here, where the spec decides"


def said_taken(settings: Mapping[str, Any], generation: Mapping[str, Any]) -> str:
    """One sentence on what a spec with `from_model` took."""
    used = {n: v for n, v in settings.items() if _is_used(n, v, generation)}
    if not used:
        return "`from_model` took nothing: the author sets nothing that the spec leaves open"
    return f"generation is as the model's author sets it: {_shown(used)}"


def _is_used(name: str, value: object, generation: Mapping[str, Any]) -> bool:
    if name not in FIELDS or FIELDS[name] not in generation:
        return False
    field = generation[FIELDS[name]]
    if name == "do_sample":
        return bool(field == 0)
    if name == "suppress_tokens" and isinstance(value, list):
        return sorted(set(value)) == list(field)
    if name == "stop_strings":
        return ([value] if isinstance(value, str) else value) == list(field)
    return bool(value == field)


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in settings.items())


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
