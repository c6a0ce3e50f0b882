"""Weights that are all there, of a model that writes text from left to right: or a refusal.

What a checkpoint lacks, transformers makes up at random and says so in a log; here it is an error
that names it, as is a tensor of another shape, one that nothing has a use for although it is of the
decoder (a layer too many, a bias, an adapter, the scales of a quantiser whose configuration is
gone), and integers where weights are numbers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from optim.cache.slot_cache import config_windows
from optim.errors import InputError

log = logging.getLogger(__name__)

_OTHER_HEADS = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM"
    r"|NextSentencePrediction|ImageClassification|AudioClassification|CTC)$|RewardModel$"
)
# Buffers that older checkpoints hold and that are computed anew.
_BUFFERS = re.compile(
    r"\.(inv_freq|position_ids|masked_bias|num_batches_tracked|cos_cached|sin_cached|causal_mask"
    r"|embed_positions)$"
    # Causal masks: no attention has a bias of its own, only its projections.
    r"|\.(attn|attention|self_attention)\.bias$"
)
# Of what stands beside the decoder, and of training: heads of other tasks, towers of other inputs,
# layers that predict tokens further ahead.
_BESIDE = re.compile(
    r"(^|\.)\w*(vision|visual|image|pixel|audio|speech|video|talker|token2wav|projector|mtp|nextn"
    r"|value_head|v_head|reward|score|classifier|pooler|cls)\w*\."
)
_SCALES = re.compile(r"(scale|scales|zero_point|qzeros|g_idx|absmax|quant_map|SCB|packed)\w*$")
_MOST_NAMES = 4
_NUMBERS = frozenset({"F64", "F32", "F16", "BF16"})
"""What weights are stored as, as safetensors calls it."""
_FIELD = "model"


def require_decoder(config: Any, path: str) -> None:
    """InputError for what is no causal language model, by its configuration alone."""
    if getattr(config, "is_encoder_decoder", False):
        raise _refused(
            f"{config.model_type} is an encoder-decoder, and only decoders are run here",
            path,
            _DECODER,
        )
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if is_encoder and not getattr(config, "is_decoder", True):
        problem = f"{config.model_type} is an encoder: its configuration says is_decoder: false"
        raise _refused(problem, path, _DECODER)
    for name in getattr(config, "architectures", None) or ():
        if _OTHER_HEADS.search(name):
            problem = f"it is a {name}: it has no head that writes text"
            raise _refused(problem, path, _DECODER)
    kind = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if kind is not None and getattr(kind, "_is_stateful", False):
        raise _refused(
            f"{config.model_type} keeps a state beside keys and values, which caches here do not "
            "hold",
            path,
            _DECODER,
        )
    try:
        config_windows(config, config.model_type)
    except InputError as error:
        raise _refused(error.problem, path, _DECODER) from error
    except (AttributeError, ValueError, TypeError, KeyError, IndexError) as error:
        problem = f"{config.model_type} does not say which caches its layers need: {error}"
        raise _refused(problem, path, _DECODER) from error


def as_run(config: Any) -> Any:
    """The configuration without what was of training; changed in place where it is."""
    if getattr(config, "output_router_logits", False):
        # Fine-tunes save it with their training's settings: it is of the loss, not of the text.
        config.output_router_logits = False
    return config


def load_whole(folder: Path, path: str, config: Any, **options: Any) -> PreTrainedModel:
    """The model of a folder with every weight that it has; InputError where one is not there."""
    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        # Shapes that differ are named below, with both.
        ignore_mismatched_sizes=True,
        **options,
    )
    missing = sorted(found["missing_keys"])
    unexpected = sorted(name for name in found["unexpected_keys"] if not _BUFFERS.search(name))
    if missing:
        beside = f"; it has {_shown(unexpected)}, which nothing uses" if unexpected else ""
        raise _refused(f"the checkpoint lacks {_shown(missing)}{beside}", path)
    mismatched = sorted(
        f"{name} {_shape(there)} where the configuration has {_shape(wanted)}"
        for name, there, wanted in found["mismatched_keys"]
    )
    if mismatched:
        raise _refused(f"the checkpoint has {_shown(mismatched)}", path)
    modules = dict(model.named_modules())
    own = [name for name in unexpected if _is_left_out(name, modules)]
    if own:
        raise _refused(
            f"the checkpoint has {_shown(own)}, which its configuration has no use for", path
        )
    if unexpected:
        log.warning("weights that nothing uses", extra={"model": path, "names": _shown(unexpected)})
    if getattr(config, "quantization_config", None) is None:
        _require_numbers(folder, path, dict(model.named_parameters()))
    return model


def _is_left_out(name: str, modules: dict[str, torch.nn.Module]) -> bool:
    """Whether a tensor is of the decoder: then outputs are not the author's without it."""
    owner, _, last = name.rpartition(".")
    if _SCALES.search(last) or "lora_" in name:
        return True
    while owner and owner not in modules:
        owner = owner.rpartition(".")[0]
    is_below = bool(owner) and owner not in ("model", "transformer")
    return is_below or not _BESIDE.search(name)


def _require_numbers(folder: Path, path: str, parameters: dict[str, torch.nn.Parameter]) -> None:
    """InputError for weights that are stored as codes without what says what they stand for."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            codes = [
                f"{name} as {kind}"
                for name in stored.keys()  # noqa: SIM118  it is no mapping
                if name in parameters
                if (kind := str(stored.get_slice(name).get_dtype())) not in _NUMBERS
            ]
        if codes:
            raise _refused(
                f"it holds {_shown(codes)}, and no quantization_config says what that stands for",
                file,
                "Give the model with its quantisation's configuration, or an unquantised one",
            )


def _shown(names: Iterable[str]) -> str:
    found = list(names)
    rest = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
    return ", ".join(found[:_MOST_NAMES]) + rest


def _shape(size: Iterable[int]) -> str:
    return f"[{', '.join(map(str, size))}]"


_WHOLE = "Give the model with all of its weights, as its author saved it"
_DECODER = "Give a decoder whose only state is its keys and values, as Llama, Qwen or Gemma are"


def _refused(problem: str, path: str | Path, mend: str = _WHOLE) -> InputError:
    return InputError(problem, source=path, field=_FIELD, mend=mend)
