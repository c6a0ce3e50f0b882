"""Sampling by the Gumbel-max trick, with noise that depends on nothing but what it is for.

The noise of a token is a hash of (seed, prompt id, base tokens emitted so far, token key), computed
element by element, so the same noise meets every configuration of a trial (common random numbers),
whatever the batch, the worker or the order. An exact optimisation then reproduces the baseline's
text token for token at any temperature.

argmax(logits/T + g) with Gumbel noise g equals argmax(p / e) with p = softmax(logits/T) and
exponential noise e = -log(u), which needs one logarithm less (Gumbel 1954; Maddison et al. 2014,
"A* Sampling", section 2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK32, _MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF

_MINUS_UNIT = -(2.0**-31) * (1 - 2.0**-23)
"""Scales 31 bits into (-1, 0); the last factor keeps the largest, rounded to 2^31, above -1."""

_CPU_CHUNK = 1 << 16
"""Scores worked on at a time on a CPU, so that a dozen element-wise passes stay in its cache."""


@dataclass(frozen=True)
class SamplingParams:
    """How one sequence is sampled."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus: the fewest most likely tokens whose mass reaches top_p; 1 is off."""
    top_k: int = 0
    """The k most likely tokens (ties kept); 0 is off."""
    repetition_penalty: float = 1.0
    """Of tokens that prompt and completion have so far (Keskar et al. 2019, section 4.1): their
    logits are divided by it above 0 and multiplied below; 1 is off."""
    suppress_tokens: tuple[int, ...] = ()
    """Ids that are never chosen; those beyond the vocabulary mean nothing."""
    max_new_tokens: int = 64
    """Budget in base tokens."""
    stop: tuple[str, ...] = ()


def stream_key(seed: int, prompt_id: str) -> int:
    """64 bits that name the noise of one (seed, prompt)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{prompt_id}".encode(), digest_size=8).digest())


def step_key(stream: int, position: int) -> int:
    """64 bits for one step of a stream: splitmix64 of the position (Steele et al. 2014)."""
    x = (stream + (position + 1) * 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _signed32(x: int) -> int:
    x &= _MASK32
    return x - (1 << 32) if x >= 1 << 31 else x


def token_hashes(keys_V: Tensor) -> Tensor:
    """[V] int32 from the vocabulary's int64 token keys; made once, mixed with each row's key."""
    low = (keys_V & _MASK32).to(torch.int64)
    high = (keys_V >> 32) & _MASK32
    # Kept below 2^31 x 2^31 so that int64 never overflows on the way.
    mixed = ((low & 0x7FFFFFFF) * 0x9E3779B1 + (low >> 31) + high * 0x85EBCA77) & _MASK32
    return torch.where(mixed >= 1 << 31, mixed - (1 << 32), mixed).to(torch.int32)


def exponential_noise(step_keys: list[int], hashes_V: Tensor) -> Tensor:
    """[B, V] float32 exponential variates, one hash per element (murmur3's 32-bit finaliser).

    int32 products wrap, as the hash wants; shifts are arithmetic, so their sign bits are masked.
    """
    device = hashes_V.device
    low_B1 = torch.tensor(
        [[_signed32(k)] for k in step_keys], dtype=torch.int32, device=device
    )  # fmt: skip
    high_B1 = torch.tensor(
        [[_signed32(k >> 32)] for k in step_keys], dtype=torch.int32, device=device
    )
    x = hashes_V[None] ^ low_B1
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= _signed32(0x2C1B3C6D)
    x += high_B1
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= _signed32(0x85EBCA6B)
    x ^= (x >> 13).bitwise_and_(0x7FFFF)
    x *= _signed32(0xC2B2AE35)
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    # 31 bits as a float keep their relative resolution near 0, where the winners lie.
    u = x.bitwise_and_(0x7FFFFFFF).to(torch.float32)
    return u.add_(0.5).mul_(_MINUS_UNIT).log1p_().neg_()


class Sampler:
    """Chooses the next token of each row of a batch."""

    def __init__(self, token_keys_V: Tensor, base_lengths_V: Tensor, device: torch.device) -> None:
        self.hashes_V = token_hashes(token_keys_V).to(device)
        self.base_lengths_V = base_lengths_V.to(device)
        self.longest = int(base_lengths_V.max())
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def __call__(
        self,
        logits_BV: Tensor,
        params: list[SamplingParams],
        step_keys: list[int],
        budgets: list[int],
        seen: list[Tensor | None] | None = None,
    ) -> list[int]:
        """Token ids, one per row; -1 for a row whose logits are not finite.

        `budgets` are base tokens left: tokens that stand for more are masked. `seen` are [V] bool,
        the tokens that a row's repetition penalty is for.
        """
        scores_BV = logits_BV.float()
        if self.longest > 1 and min(budgets) < self.longest:
            budgets_B1 = torch.tensor(budgets, device=scores_BV.device)[:, None]
            scores_BV = scores_BV.masked_fill(self.base_lengths_V[None] > budgets_B1, float("-inf"))
        if seen is not None:
            scores_BV = _penalise(scores_BV, [p.repetition_penalty for p in params], seen)
        scores_BV = self._suppress(scores_BV, params)
        if all(p.temperature == 0 for p in params):
            best, tokens_B = scores_BV.max(dim=-1)
        else:
            best, tokens_B = self._sample_in_chunks(scores_BV, params, step_keys)
        # One transfer: it is also what makes the device's work of this step complete.
        chosen: list[int] = torch.where(torch.isfinite(best), tokens_B, -1).tolist()
        return chosen

    def _suppress(self, scores_BV: Tensor, params: list[SamplingParams]) -> Tensor:
        wanted = [p.suppress_tokens for p in params]
        if not any(wanted):
            return scores_BV
        masks_BV = torch.stack([self._mask(tokens, scores_BV) for tokens in wanted])
        return scores_BV.masked_fill(masks_BV, float("-inf"))

    def _mask(self, tokens: tuple[int, ...], scores_BV: Tensor) -> Tensor:
        """[V] bool, kept: every step asks for the same."""
        if tokens not in self._masks:
            self._masks[tokens] = mask_of(tokens, scores_BV.shape[-1], scores_BV.device)
        return self._masks[tokens]

    def _sample_in_chunks(
        self, scores_BV: Tensor, params: list[SamplingParams], step_keys: list[int]
    ) -> tuple[Tensor, Tensor]:
        num_rows, size = scores_BV.shape
        rows = num_rows if scores_BV.is_cuda else max(1, _CPU_CHUNK // size)
        if num_rows <= rows:
            return self._sample(scores_BV, params, step_keys)
        chunks = [
            self._sample(scores_BV[i : i + rows], params[i : i + rows], step_keys[i : i + rows])
            for i in range(0, num_rows, rows)
        ]
        return torch.cat([best for best, _ in chunks]), torch.cat([token for _, token in chunks])

    def _sample(
        self, scores_BV: Tensor, params: list[SamplingParams], step_keys: list[int]
    ) -> tuple[Tensor, Tensor]:
        device = scores_BV.device
        temperatures = [p.temperature or 1.0 for p in params]
        scaled_BV = scores_BV / torch.tensor(temperatures, device=device)[:, None]
        if any(p.top_k for p in params):
            scaled_BV = _keep_top_k(scaled_BV, [p.top_k for p in params])
        p_BV = torch.softmax(scaled_BV, dim=-1)
        noise_BV = exponential_noise(step_keys, self.hashes_V)
        race_BV = torch.div(p_BV, noise_BV, out=noise_BV)
        if any(p.temperature == 0 for p in params):
            greedy_B1 = torch.tensor([[p.temperature == 0] for p in params], device=device)
            race_BV = torch.where(greedy_B1, p_BV, race_BV)
        best_B, tokens_B = race_BV.max(dim=-1)
        if any(p.top_p < 1 for p in params):
            tops = [p.top_p if p.temperature else 2.0 for p in params]
            tokens_B = _keep_nucleus(p_BV, race_BV, tokens_B, torch.tensor(tops, device=device))
        return best_B, tokens_B


def mask_of(tokens: Iterable[int], size: int, device: torch.device) -> Tensor:
    """[V] bool: the tokens that are given, as far as there are such."""
    mask_V = torch.zeros(size, dtype=torch.bool)
    mask_V[[token for token in set(tokens) if 0 <= token < size]] = True
    return mask_V.to(device)


def _penalise(scores_BV: Tensor, penalties: list[float], seen: list[Tensor | None]) -> Tensor:
    """As transformers' RepetitionPenaltyLogitsProcessor does it, row by row."""
    for penalty in sorted(set(penalties) - {1.0}):
        none_V = torch.zeros(scores_BV.shape[-1], dtype=torch.bool, device=scores_BV.device)
        rows = [
            own if own is not None and each == penalty else none_V
            for own, each in zip(seen, penalties, strict=True)
        ]
        # By a number, not a tensor of numbers: a GPU divides otherwise by the one and the other,
        # and a row's last bits would be its neighbours'.
        penalised_BV = torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
        scores_BV = torch.where(torch.stack(rows), penalised_BV, scores_BV)
    return scores_BV


def _keep_top_k(scaled_BV: Tensor, top_ks: list[int]) -> Tensor:
    size = scaled_BV.shape[-1]
    ks = [min(k, size) if k else size for k in top_ks]
    limited = max((k for k in ks if k < size), default=0)
    if not limited:
        return scaled_BV
    highest_Bk = scaled_BV.topk(limited, dim=-1).values
    index_B1 = torch.tensor([[min(k, limited) - 1] for k in ks], device=scaled_BV.device)
    least_B1 = highest_Bk.gather(1, index_B1)
    off_B1 = torch.tensor([[k == size] for k in ks], device=scaled_BV.device)
    return scaled_BV.masked_fill((scaled_BV < least_B1) & ~off_B1, float("-inf"))


def _keep_nucleus(p_BV: Tensor, race_BV: Tensor, tokens_B: Tensor, top_p_B: Tensor) -> Tensor:
    """The race's winner within the nucleus, without sorting the vocabulary.

    A token is in the nucleus where the mass above it is below top_p. The winner is tested so; if it
    is out, all tokens as unlikely are out too, and the race is held again without them. A nucleus
    of mass top_p holds the winner with that probability, so a second pass is rare.
    """
    while True:
        p_winner_B1 = p_BV.gather(1, tokens_B[:, None])
        above_B = torch.where(p_BV > p_winner_B1, p_BV, 0.0).sum(dim=-1)
        # `>=` is False for NaN, so a broken row leaves the loop and is reported by the caller.
        outside_B = above_B >= top_p_B
        if not bool(outside_B.any()):
            return tokens_B
        lost_BV = outside_B[:, None] & (p_BV <= p_winner_B1)
        race_BV = race_BV.masked_fill(lost_BV, -1.0)
        tokens_B = race_BV.argmax(dim=-1)
