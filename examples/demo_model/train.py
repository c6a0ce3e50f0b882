"""Train the demo model from nothing on this Python installation's own documentation.

    python -m examples.demo_model.train --work /tmp/demo_train --export optim/demo_model

The run can be stopped and started again: it goes on from the last checkpoint in the work folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.demo_model.tokenizer import (
    CONTEXT_TOKENS,
    END_OF_TEXT,
    VOCABULARY_SIZE,
    save_tokenizer,
    train_tokenizer,
)
from jobs.data.demo_corpus import Document, training_documents

SEED = 20
STEPS = 3000
"""Optimiser steps; the learning rate's schedule is drawn over exactly these."""
BATCH_TOKENS = 2048
"""Predicted tokens of one step, whatever the sequences' length."""
SHORT_TOKENS = 512
LONG_FROM = 0.8
"""Share of the steps with sequences of 512 tokens; the rest use the whole context length."""
PEAK_RATE = 5e-3
FINAL_RATE = 2e-4
WARM_UP_STEPS = 60
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
PROSE_REPEATS = 3
"""Times that an epoch gives each piece of documentation; a module's source comes once."""


SHAPES: dict[str, dict[str, int]] = {
    "demo": {
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    # What a method does to one layer adds up over layers: deep, at about the same size.
    "deep": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}


def model_config(shape: str = "demo") -> LlamaConfig:
    """A small model with the parts of a large one: grouped queries, RoPE, SwiGLU."""
    return LlamaConfig(
        **SHAPES[shape],
        vocab_size=VOCABULARY_SIZE,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )


def packed_tokens(
    tokenizer: Tokenizer, documents: list[Document], wanted: int
) -> npt.NDArray[np.int32]:
    """`wanted` tokens of shuffled documents, each followed by the end of text."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    encoded = [
        np.array([*each.ids, end], dtype=np.int32)
        for each in tokenizer.encode_batch([document.text for document in documents])
    ]
    epoch = [
        index
        for index, document in enumerate(documents)
        for _ in range(1 if document.is_source else PROSE_REPEATS)
    ]
    print(f"one epoch: {sum(len(encoded[index]) for index in epoch)} tokens", flush=True)
    order = random.Random(SEED)
    pieces: list[npt.NDArray[np.int32]] = []
    size = 0
    while size < wanted:
        order.shuffle(epoch)
        pieces.extend(encoded[index] for index in epoch)
        size += sum(len(encoded[index]) for index in epoch)
    return np.concatenate(pieces)[:wanted]


def batch(tokens: npt.NDArray[np.int32], step: int, steps: int) -> torch.Tensor:
    """The sequences of one step: consecutive parts of the packed tokens."""
    length = SHORT_TOKENS if step < LONG_FROM * steps else CONTEXT_TOKENS
    part = tokens[step * BATCH_TOKENS : (step + 1) * BATCH_TOKENS]
    return torch.from_numpy(part.astype(np.int64)).view(-1, length)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine from the peak to the final learning rate."""
    if step < WARM_UP_STEPS:
        return PEAK_RATE * (step + 1) / WARM_UP_STEPS
    share = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return FINAL_RATE + (PEAK_RATE - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * share))


def new_optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms' gains.

    On one core the steps are few, and Muon gets much further in each than AdamW alone. Its
    updates are scaled to AdamW's size, so that one learning rate serves both.
    """
    embedding = [each for name, each in model.named_parameters() if "embed_tokens" in name]
    gains = [each for each in model.parameters() if each.dim() < 2]
    matrices = [
        each
        for name, each in model.named_parameters()
        if each.dim() == 2 and "embed_tokens" not in name
    ]
    groups = [
        {"params": embedding, "weight_decay": WEIGHT_DECAY},
        {"params": gains, "weight_decay": 0},
    ]
    return [
        torch.optim.Muon(
            matrices,
            lr=PEAK_RATE,
            weight_decay=WEIGHT_DECAY,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True),
    ]


def mean_loss(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Mean nats per predicted token, by sequence: the logits of a batch would leave the cache."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    losses = [
        torch.nn.functional.cross_entropy(
            model.lm_head(each[:-1]).float(), sequence[1:], reduction="mean"
        )
        for each, sequence in zip(hidden, inputs, strict=True)
    ]
    return torch.stack(losses).mean()


def export(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model's files beside `folder`, then put each in place in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    fresh.mkdir(exist_ok=True)
    shipped: Any = LlamaForCausalLM(model.config)
    shipped.load_state_dict(model.state_dict())
    shipped = shipped.to(torch.bfloat16)
    configure: Any = GenerationConfig
    shipped.generation_config = configure(eos_token_id=0, pad_token_id=0)
    shipped.save_pretrained(fresh)
    save_tokenizer(tokenizer, fresh)
    for path in sorted(fresh.iterdir()):
        path.chmod(0o644)
        os.replace(path, folder / path.name)
    fresh.rmdir()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    fresh = path.with_suffix(".fresh")
    torch.save(state, fresh)
    os.replace(fresh, path)


def train(
    work: Path, target: Path, shape: str, steps: int, save_every_s: float, bf16: bool
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    documents = list(training_documents())
    tokenizer_path = work / "tokenizer.json"
    if tokenizer_path.exists():
        tokenizer = Tokenizer.from_file(str(tokenizer_path))
    else:
        tokenizer = train_tokenizer(
            each.text for each in documents for _ in range(1 if each.is_source else PROSE_REPEATS)
        )
        tokenizer.save(str(tokenizer_path))
    tokens = packed_tokens(tokenizer, documents, steps * BATCH_TOKENS)
    model: Any = LlamaForCausalLM(model_config(shape))
    print(f"{sum(each.numel() for each in model.parameters())} parameters", flush=True)
    optimizers = new_optimizers(model)
    checkpoint = work / "checkpoint.pt"
    first, spent_s = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["steps"] != steps:
            raise SystemExit(f"{checkpoint} is of a run of {state['steps']} steps, not {steps}")
        model.load_state_dict(state["model"])
        for optimizer, part in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        first, spent_s = state["step"], state["spent_s"]
    model.train()
    started = saved = time.monotonic()
    losses: list[float] = []
    for step in range(first, steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate(step, steps)
        inputs = batch(tokens, step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = mean_loss(model, inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        now = time.monotonic()
        if (step + 1) % 20 == 0 or step + 1 == steps:
            speed = (step + 1 - first) * BATCH_TOKENS / (now - started)
            print(
                json.dumps(
                    {
                        "step": step + 1,
                        "loss": round(sum(losses) / len(losses), 4),
                        "tokens_per_s": round(speed),
                    }
                ),
                flush=True,
            )
            losses = []
        if now - saved >= save_every_s or step + 1 == steps:
            save_checkpoint(
                checkpoint,
                {
                    "model": model.state_dict(),
                    "optimizers": [each.state_dict() for each in optimizers],
                    "step": step + 1,
                    "steps": steps,
                    "spent_s": spent_s + now - started,
                },
            )
            export(model, tokenizer, target)
            saved = now
    print(
        json.dumps(
            {
                "steps": steps,
                "tokens": steps * BATCH_TOKENS,
                "seconds": round(spent_s + time.monotonic() - started),
            }
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for checkpoints, outside the repository"
    )
    parser.add_argument("--export", type=Path, required=True, help="folder for the model")
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every-s", type=float, default=480.0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(
        arguments.work,
        arguments.export,
        arguments.shape,
        arguments.steps,
        arguments.save_every_s,
        arguments.bf16,
    )


if __name__ == "__main__":
    main()
