"""`LanguageModel`: a causal LM, its tokenizer and its cache, loaded from a folder or a hub.

Weights are read from safetensors only and code from the hub is never run unless the caller asks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from optim.allotment import available_memory_bytes
from optim.cache.slot_cache import CacheFactory, DynamicSlotCache
from optim.errors import InputError
from optim.models.adapters import require_no_adapter
from optim.models.checkpoint import as_run, load_whole, require_decoder
from optim.models.window import context_length
from optim.proxies import hub_address, proxy_words

DEMO = Path(__file__).parent / "demo_model"
"""The small model that ships with Optrial."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SNAPSHOT = re.compile(r"/models--[^/]+/snapshots/[0-9a-f]{40}$")
"""A folder of the hub's cache, which is named by the commit that it holds."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Vocabulary:
    """What the engine must know of each token id: its noise key, and its length."""

    keys_V: Tensor
    """int64: the base id of a kept token, a hash of its bytes for a new one."""
    base_lengths_V: Tensor
    """int32: how many base tokens it stands for."""

    @classmethod
    def base(cls, size: int) -> Vocabulary:
        return cls(torch.arange(size), torch.ones(size, dtype=torch.int32))


PhaseName = Literal["prefill", "decode"]
"""Whether a forward pass is over a prompt's tokens, or over generated ones."""


def _any_phase(name: PhaseName) -> AbstractContextManager[None]:
    return nullcontext()


class Meter(Protocol):
    """What an optimisation counts while its model runs."""

    def reset(self) -> None:
        """Start over."""
        ...

    def facts(self) -> dict[str, Any]:
        """Columns of `cells`, since the last reset; null what is not known."""
        ...


@dataclass(frozen=True)
class LanguageModel:
    """What an optimisation takes and gives; never changed in place."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    new_cache: CacheFactory | None = None
    """Set by an optimisation that brings its own cache; else the configuration's `cache` rules."""
    phase: Callable[[PhaseName], AbstractContextManager[None]] = _any_phase
    """A context in which forward passes are of that phase, for models that treat them unlike."""
    meter: Meter | None = None
    """Set by an optimisation that counts what it does."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Columns of `cells` that are the same for every cell: what its optimisations are known for."""
    fingerprint: str = ""
    """What names its content, where that is known: see `identity`."""
    origin: tuple[str, str | None] | None = None
    """The path and revision that it was loaded from, unchanged."""

    def identity(self) -> str:
        """What names the content of weights and tokenizer, hex: artifacts are of one identity.

        The fingerprint that it has, else that of the files that it was loaded from, else sha256
        over its parameters and vocabulary.
        """
        if self.fingerprint:
            return self.fingerprint
        if self.origin is not None:
            return fingerprint(self.origin[0], revision=self.origin[1])
        return _content(self.model, self.tokenizer)

    @property
    def is_phased(self) -> bool:
        """Whether prompts and generated tokens go through different computations."""
        return self.phase is not _any_phase

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def context_length(self) -> int | None:
        """Positions that the model knows, prompt and completion together; None for no limit."""
        return context_length(self.model.config)

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end a completion, as the model's generation config says."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        if ends is None:
            ends = self.tokenizer.eos_token_id
        if ends is None:
            return frozenset()
        return frozenset(ends if isinstance(ends, list) else [ends])

    def cache(self, factory: CacheFactory | None, num_slots: int, max_length: int) -> Any:
        make = self.new_cache or factory or DynamicSlotCache
        return make(self.model, num_slots, max_length)


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """A `LanguageModel` of a model that is in memory already."""
    size = model.get_output_embeddings().weight.shape[0]
    return LanguageModel(model.eval(), tokenizer, Vocabulary.base(size))


def load(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    fingerprint: str = "",
) -> LanguageModel:
    """Load a model and its tokenizer on one device.

    `path` is a folder, a hub id, or `demo`; `fingerprint` is its, where the caller has it. `dtype`
    `auto` is float32 on CPU, the checkpoint's own elsewhere; `device` `auto` is cuda where there is
    one. Raises InputError where the path is no model, where it is unsafe to read, and where it does
    not fit the device.
    """
    folder = resolve(path, revision=revision)
    where = torch.device(_device(device))
    with model_errors(path):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        require_decoder(config, path)
        config = as_run(config)
        wanted = _dtype(dtype, config, where)
        _check_fits(config, wanted, where, path, trust_remote_code)
        model = load_whole(folder, path, config, dtype=wanted, trust_remote_code=trust_remote_code)
    model.requires_grad_(False)
    tokenizer = load_tokenizer(path, revision=revision, trust_remote_code=trust_remote_code)
    made = wrap(model.to(where), tokenizer)
    return replace(made, fingerprint=fingerprint, origin=(path, revision))


def load_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; InputError where there is none."""
    folder = resolve(path, revision=revision)
    with model_errors(path):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def vocabulary_size(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> int:
    """How many token ids a model has, by its configuration."""
    folder = resolve(path, revision=revision)
    with model_errors(path):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return int(config.get_text_config(decoder=True).vocab_size)


def resolve(path: str, *, revision: str | None = None) -> Path:
    """The local folder of a model: the shipped one, a given one, or a hub snapshot.

    InputError where there is none, and where it holds an adapter.
    """
    if path == "demo":
        return DEMO
    found = _folder(path, revision)
    require_no_adapter(found, "model")
    return found


def _folder(path: str, revision: str | None) -> Path:
    folder = Path(path).expanduser()
    # What lies in a folder that is here is no id on the hub, whatever its spelling.
    is_beside = "/" in path and Path(path.split("/")[0]).is_dir()
    is_local = folder.exists() or is_beside or path.startswith((".", "/", "~"))
    if is_local or not _HUB_ID.fullmatch(path):
        if not (folder / "config.json").is_file():
            require_no_adapter(folder, "model")
            found = "there is no such folder" if not folder.exists() else "it has no config.json"
            raise InputError(
                f"is not a model: {found}",
                source=path,
                field="model",
                mend="Give a folder with config.json and *.safetensors, a hub id, or demo",
            )
        return folder
    return _snapshot(path, revision)


def _snapshot(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"cannot be had from the hub{at} ({type(error).__name__})",
            source=hub_id,
            field="model",
            mend="Check the id, the revision and the network, or give a local folder"
            + (f".{words}" if (words := proxy_words(hub_address(), error)) else ""),
        ) from error


def fingerprint(path: str, *, revision: str | None = None) -> str:
    """What names a model's content: sha256 over its files, or the commit of a hub snapshot."""
    folder = resolve(path, revision=revision)
    if _SNAPSHOT.search(folder.as_posix()):
        return folder.name
    digest = hashlib.sha256()
    names = sorted({file for pattern in _FILES for file in folder.glob(pattern)})
    for file in names:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _content(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for token, number in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{token}\0{number}\0".encode())
    return digest.hexdigest()


def weight_bytes(model: PreTrainedModel, beside: PreTrainedModel | None = None) -> tuple[int, int]:
    """(shared, private) bytes of a model's parameters and buffers.

    Shared is what lies in the same storage as `beside`'s; tied parameters count once.
    """
    own = _storages(model)
    theirs = _storages(beside) if beside is not None else {}
    shared = sum(size for address, size in own.items() if address in theirs)
    return shared, sum(own.values()) - shared


def _storages(model: PreTrainedModel) -> dict[int, int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            "this machine has no CUDA device",
            field="device",
            mend="Use device: cpu, or run where there is a GPU",
        )
    return device


def _dtype(dtype: str, config: Any, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    own = getattr(config, "dtype", None)
    return own if device.type == "cuda" and isinstance(own, torch.dtype) else torch.float32


def _check_fits(
    config: Any, dtype: torch.dtype, device: torch.device, path: str, trust_remote_code: bool
) -> None:
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    needed = sum(p.numel() * p.element_size() for p in skeleton.parameters())
    is_cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if is_cuda else available_memory_bytes()
    if needed > free:
        raise InputError(
            f"its weights need {needed / 1e9:.1f} GB in {dtype}, and {device} has "
            f"{free / 1e9:.1f} GB free; Optrial runs a model on one device",
            source=path,
            field="model",
            mend="Use a smaller dtype, a larger device, or a smaller model",
        )


@contextmanager
def model_errors(path: str) -> Iterator[None]:
    """Say in one sentence why a folder is no model that can be read."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"cannot be loaded without another package: {first[0][:300]}",
            source=path,
            field="model",
            mend="Install it, or give the model's weights as they were before they were quantised",
        ) from error
    except (
        OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, AssertionError,
        SafetensorError,
    ) as error:  # fmt: skip
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"cannot be loaded: {first[0][:300]}",
            source=path,
            field="model",
            mend="It must be a causal LM of a known architecture, saved as safetensors",
        ) from error
