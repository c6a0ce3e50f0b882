"""What checks of architectures found, kept in the user's cache folder.

Kept under everything that a finding depends on: the configuration, the versions of torch and
transformers, and the engine's own code. A folder that cannot be read or written costs time alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

import cluster
import optim
from optim.cache.slot_cache import CACHES
from optim.models.small_config import with_small_vocabulary

FOLDER_VARIABLE = "OPTRIAL_CACHE"
KNOWN_CACHES = (*CACHES, "vattention")
_INDIFFERENT = frozenset(
    ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id",
     "quantization_config", "use_cache")
)  # fmt: skip
"""Fields of configurations that decide nothing of what is checked, which is in float32."""

log = logging.getLogger(__name__)


class Case(NamedTuple):
    """A way through the engine."""

    cache: str = "dynamic"
    is_batched: bool = False
    is_chunked: bool = False

    @property
    def name(self) -> str:
        rows = "batch_size above 1" if self.is_batched else "batch_size 1"
        return f"{self.cache} cache, {rows}{', prefill_chunk' if self.is_chunked else ''}"


ALL_CASES = tuple(
    Case(cache, is_batched, is_chunked)
    for is_batched in (False, True)
    for cache in KNOWN_CACHES
    for is_chunked in (False, True)
)


class Verdict(BaseModel):
    """What the check of an architecture found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    problem: str | None = None
    """Why it could not be checked at all."""
    faults: dict[str, str] = {}
    """What is wrong, by `Case.name`."""


class _Kept(BaseModel):
    """A file of the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    verdict: Verdict


_known: dict[str, Verdict] = {}


def recall(config: Any) -> Verdict | None:
    """What was found for a configuration; None where nothing was, or it cannot be read."""
    key = _key(config)
    if key not in _known:
        try:
            kept = _Kept.model_validate_json((_folder() / f"{key}.json").read_bytes())
        except (OSError, RuntimeError, ValidationError):
            return None
        if kept.key != key:
            return None
        _known[key] = kept.verdict
    return _known[key]


def store(config: Any, verdict: Verdict) -> None:
    """Keep what was found, in this process and on disk."""
    key = _key(config)
    _known[key] = verdict
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{key}.{uuid.uuid4().hex}"
        try:
            temporary.write_text(_Kept(key=key, verdict=verdict).model_dump_json())
            os.replace(temporary, folder / f"{key}.json")
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        log.info("the check of an architecture is not remembered", extra={"reason": str(error)})


def forget() -> None:
    """Forget what this process knows; files stay."""
    _known.clear()


def _folder() -> Path:
    """RuntimeError where the user has no home."""
    if own := os.environ.get(FOLDER_VARIABLE):
        return Path(own).expanduser() / "architectures"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "optrial" / "architectures"


def _key(config: Any) -> str:
    fields = _plain(with_small_vocabulary(config).to_dict())
    told = [type(config).__module__, type(config).__qualname__, fields]
    attention = str(getattr(config, "_attn_implementation", None) or "sdpa")
    versions = {name: version(name) for name in ("torch", "transformers")}
    text = json.dumps([told, attention, versions, _code()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k not in _INDIFFERENT}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    return value


@cache
def _code() -> str:
    """Of all that an engine is made of, as it was when this was first asked."""
    digest = hashlib.sha256()
    for package in (cluster, optim):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
