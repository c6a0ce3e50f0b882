"""How a trial's completions are sampled: by its spec, and where that asks so by the model's author.

Also what cannot be asked for: settings about single tokens, where tokens are not the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.plan import Configuration, Generation, ModelSource
from jobs.spec.trial_spec import GenerationSpec
from optim.errors import InputError


def generation_of(wanted: GenerationSpec, model: ModelSource, spec_path: str | Path) -> Generation:
    """What a spec asks for, with `from_model` resolved: what it sets itself has precedence.

    InputError where the author asks for what the engine does not have, and for tokens that the
    model does not have.
    """
    explicit = wanted.model_dump(exclude={"from_model"}, include=wanted.model_fields_set)
    if wanted.from_model:
        wanted = _by_author(explicit, model)
    made = Generation(**wanted.model_dump(exclude={"from_model"}))
    if explicit.get("suppress_tokens"):
        _require_tokens(made, model, spec_path)
    return made


def _by_author(explicit: dict[str, Any], model: ModelSource) -> GenerationSpec:
    from optim.author_settings import FILE, author_fields

    fields = author_fields(model.path, revision=model.revision)
    try:
        return GenerationSpec.model_validate({**fields, **explicit})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"the author's {'.'.join(map(str, first['loc']))}: {first['msg']}, got "
            f"{first['input']!r}",
            source=Path(model.path) / FILE if "/" in model.path else model.path,
            field="generation.from_model",
            mend="Set that field in the spec's `generation`, which has precedence",
        ) from error


def _require_tokens(generation: Generation, model: ModelSource, spec_path: str | Path) -> None:
    from optim.model import vocabulary_size

    size = vocabulary_size(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    beyond = [each for each in generation.suppress_tokens if each >= size]
    if beyond:
        raise InputError(
            f"the model has no token {beyond[0]}: its ids end at {size - 1}",
            source=spec_path,
            field="generation.suppress_tokens",
            mend="Leave it out, or take the id from the model's own tokenizer",
        )


def require_one_vocabulary(
    generations: Iterable[Generation],
    configurations: Sequence[Configuration],
    spec_path: str | Path,
) -> None:
    """InputError for settings about single tokens across configurations whose tokens differ.

    A penalty on a token that stands for several of another vocabulary is another penalty, and an
    id of the model's means another token there.
    """
    vocabularies = {c.name: _vocabulary(c) for c in configurations}
    adapted = next((name for name, own in vocabularies.items() if own), None)
    if adapted is None:
        return
    is_one = len(set(vocabularies.values())) == 1
    for generation in generations:
        if generation.repetition_penalty != 1 and not is_one:
            field, how = "repetition_penalty", "1"
            problem = f"a penalty on a token means something else in the vocabulary of `{adapted}`"
        elif generation.suppress_tokens:
            field, how = "suppress_tokens", "[]"
            problem = f"the model's ids are other tokens in the vocabulary of `{adapted}`"
        else:
            continue
        raise InputError(
            problem,
            source=spec_path,
            field=f"generation.{field}",
            mend=f"Set `{field}: {how}`, or run configurations of one vocabulary only",
        )


def _vocabulary(configuration: Configuration) -> tuple[tuple[str, str], ...]:
    """What names a configuration's vocabulary; empty where it is the model's own."""
    from optim.registry import optimization

    found = []
    for chosen in configuration.optimizations:
        made = optimization(chosen.name, chosen.settings)
        if made.stage == "vocabulary" and not getattr(made, "keeps_vocabulary", False):
            found.append((chosen.name, chosen.fingerprint))
    return tuple(found)
