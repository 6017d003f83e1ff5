"""Rotary position embeddings: tables of cosines and sines, and the rotation itself."""

from __future__ import annotations

import math
from typing import Final

import torch

from broker.architecture import Rope


class RotaryTable:
    """Cosines and sines by absolute position, computed once, in blocks of fixed size.

    Fixed blocks, because a vectorised cosine may differ in the last bit between the body
    and the tail of an array: so a position's values never depend on what else is asked.
    """

    _BLOCK: Final = 512

    def __init__(self, rope: Rope, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        num_rotated = int(head_dim * rope.share)
        self._frequencies = inverse_frequencies(rope, num_rotated)
        self._amplitude = rope.amplitude
        self._dtype, self._device = dtype, device
        empty = torch.empty((0, 1, num_rotated), dtype=dtype, device=device)
        self._cos, self._sin = empty, empty

    def __call__(self, positions: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and signed sin, each (n, 1, rotated dims), of positions below ``end``."""
        while len(self._cos) < end:
            self._extend()
        return self._cos[positions], self._sin[positions]

    def _extend(self) -> None:
        start = len(self._cos)
        positions = torch.arange(start, start + self._BLOCK, dtype=torch.float32)
        angles = positions[:, None] * self._frequencies
        cos, sin = angles.cos() * self._amplitude, angles.sin() * self._amplitude
        # Halves swapped instead of "rotated": the minus sign moves from x into the sine.
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        self._cos = torch.cat((self._cos, cos[:, None].to(self._device, self._dtype)))
        self._sin = torch.cat((self._sin, sin[:, None].to(self._device, self._dtype)))


def rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Rotate (n, heads, head_dim) in place by what a `RotaryTable` gives; None: not at all."""
    if rotary is None:
        return x
    cos, sin = rotary
    num_rotated = cos.shape[-1]
    part = x[..., :num_rotated]
    swapped = part.roll(num_rotated // 2, -1)
    part.mul_(cos).addcmul_(swapped, sin)
    return x


def inverse_frequencies(rope: Rope, num_dims: int) -> torch.Tensor:
    """Return (num_dims / 2,) float32 radians per position.

    ``llama3`` is the scaling that Meta published with Llama 3.1: long wavelengths are
    divided by the factor, short ones kept, those between blended linearly in frequency.
    ``yarn`` (arXiv 2309.00071) blends linearly over dimensions instead.
    """
    exponents = torch.arange(0, num_dims, 2, dtype=torch.float32) / num_dims
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "longrope":
        return frequencies / torch.tensor(rope.factors)
    if rope.kind == "llama3":
        return _llama3(rope, frequencies)
    if rope.kind == "yarn":
        return _yarn(rope, frequencies)
    return frequencies


def _llama3(rope: Rope, frequencies: torch.Tensor) -> torch.Tensor:
    context, low, high = (
        rope.original_max_position_embeddings,
        rope.low_freq_factor,
        rope.high_freq_factor,
    )
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > context / low, frequencies / rope.factor, frequencies)
    smooth = (context / wavelengths - low) / (high - low)
    blended = (1 - smooth) * scaled / rope.factor + smooth * scaled
    is_medium = (wavelengths >= context / high) & (wavelengths <= context / low)
    return torch.where(is_medium, blended, scaled)


def _yarn(rope: Rope, frequencies: torch.Tensor) -> torch.Tensor:
    half = len(frequencies)
    fewest, most = rope.turns

    def pair_of(turns: float) -> float:
        """Return which pair of dimensions turns so often within the original context."""
        wavelength = rope.original_max_position_embeddings / turns
        return half * math.log(wavelength / (2 * math.pi)) / math.log(rope.theta)

    first, last = pair_of(most), pair_of(fewest)
    if rope.is_whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    pairs = torch.arange(half, dtype=torch.float32)
    # A step where the two meet.
    slow = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequencies / rope.factor * slow + frequencies * (1 - slow)
