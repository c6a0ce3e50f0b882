"""How a model is tuned, and what was done."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from optim.adaptivocab.training.segments import SEGMENT_BYTES


class Tuning(BaseModel):
    """How a model is tuned. Everything is counted in bytes of text, so that models with different
    vocabularies see the same text in the same steps."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """How often the text is seen; rounded to whole steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """The highest one (AdamW); it falls to 0 along a cosine. The paper's, for models of 7 billion
    parameters; a small one may want more."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Of matrices and rows; norms and biases have none."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises. A share, because the paper's 500 steps
    are more than one epoch of its own text has."""
    batch_bytes: Annotated[int, Field(ge=1)] = 16384
    """Bytes of text to a step of the optimiser, over all processes; whole segments. The paper has
    some 100 kB, which leaves a small text too few steps."""
    segment_bytes: Annotated[int, Field(ge=4)] = SEGMENT_BYTES
    """Most bytes of a segment of text, which is what the model sees at once; less where the model
    has no room for so many tokens."""
    pass_bytes: Annotated[int, Field(ge=1)] = 8192
    """Bytes of text that a device takes at once; less needs less memory, and more passes a step."""
    trained_layers: Literal["first_and_last", "none", "all"] = "first_and_last"
    """Blocks that are trained beside the embedding rows and the head. With LoRA, none is."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of LoRA adapters on all linear layers of the body, merged in the end; 0 for none."""
    new_rows_first: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps in which only the rows of new tokens are trained, of a model that has
    any."""
    bfloat16: bool = False
    """Multiply in bfloat16 on a CPU too; on CUDA that is done where the device can."""
    checkpoint_steps: Annotated[int, Field(ge=1)] = 50
    """Steps between checkpoints, from which an interrupted run goes on."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the order of the segments, dropout and LoRA."""


class TuningFacts(BaseModel):
    """What was done; counts are over all processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int
    segments_per_step: int
    num_segments: int
    text_bytes: int
    """Of the text that was trained on, repetitions included."""
    num_tokens: int
    """That were predicted, repetitions included."""
    num_trained: int
    """Parameters that were trained."""
    first_loss: float
    """Nats per token over the first steps; not comparable across vocabularies."""
    last_loss: float
    resumed_step: int
    """The step of the checkpoint that it went on from; 0 for none."""
