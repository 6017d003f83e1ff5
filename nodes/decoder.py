"""The arithmetic of a decoder block of the Llama family, on plain tensors.

Knows nothing of requests, caches or stages. Linears take any number of rows; attention is
two functions, one for a chunk of a prompt and one for a single position, and which one
computes a position never depends on when or with whom it is computed (design, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from broker.architecture import ModelConfig, Rope
from nodes.feed_forward import FeedForward
from nodes.packed import Linear, Norm


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One block's weights; projections that share their input are one matrix.

    Attributes:
        qkv: ((num_heads + 2 * num_kv_heads) * head_dim, hidden); rows of q, then k, then v.
    """

    input_norm: Norm
    qkv: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    output: Linear
    post_attention_norm: Norm
    feed_forward: FeedForward

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        norms = (self.input_norm, self.q_norm, self.k_norm, self.post_attention_norm)
        total = sum(norm.num_bytes for norm in norms if norm is not None)
        return total + self.qkv.num_bytes + self.output.num_bytes + self.feed_forward.num_bytes


class RotaryTable:
    """Cosines and sines by absolute position, computed once, in blocks of fixed size.

    Fixed blocks, because a vectorised cosine may differ in the last bit between the body
    and the tail of an array: so a position's values never depend on what else is asked.
    """

    _BLOCK: Final = 512

    def __init__(self, rope: Rope, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._frequencies = inverse_frequencies(rope, head_dim)
        self._dtype, self._device = dtype, device
        empty = torch.empty((0, 1, head_dim), dtype=dtype, device=device)
        self._cos, self._sin = empty, empty

    def __call__(self, positions: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and signed sin, each (n, 1, head_dim), of positions below ``end``."""
        while len(self._cos) < end:
            self._extend()
        return self._cos[positions], self._sin[positions]

    def _extend(self) -> None:
        start = len(self._cos)
        positions = torch.arange(start, start + self._BLOCK, dtype=torch.float32)
        angles = positions[:, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        # Halves swapped instead of "rotated": the minus sign moves from x into the sine.
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        self._cos = torch.cat((self._cos, cos[:, None].to(self._device, self._dtype)))
        self._sin = torch.cat((self._sin, sin[:, None].to(self._device, self._dtype)))


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Return (head_dim / 2,) float32 radians per position.

    ``llama3`` is the scaling that Meta published with Llama 3.1: long wavelengths are
    divided by the factor, short ones kept, those between blended linearly in frequency.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
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
    return frequencies


class Block:
    """One decoder block: what comes before attention and what comes after it."""

    def __init__(self, config: ModelConfig, weights: BlockWeights) -> None:
        self._config, self._weights = config, weights

    def project(
        self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rotated queries (n, heads, head_dim), rotated keys and values of all rows."""
        config, weights = self._config, self._weights
        qkv = weights.qkv(hidden, weights.input_norm).view(len(hidden), -1, config.head_dim)
        qk, v = torch.split(qkv, [config.num_heads + config.num_kv_heads, config.num_kv_heads], 1)
        if weights.q_norm is not None and weights.k_norm is not None:
            q, k = qk[:, : config.num_heads], qk[:, config.num_heads :]
            qk = torch.cat((weights.q_norm(q), weights.k_norm(k)), 1)
        rotated = _rotate(qk, rotary)
        return rotated[:, : config.num_heads], rotated[:, config.num_heads :], v

    def finish(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Return the block's output from its input and the attention's (n, heads * head_dim)."""
        weights = self._weights
        hidden = hidden + weights.output(attended)
        return hidden + weights.feed_forward(hidden, weights.post_attention_norm)


def _rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def attend_chunk(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention of n consecutive positions over everything up to them.

    The queries of the heads that share a key head stand below each other as rows, so keys
    and values are never repeated.

    Args:
        query: (n, heads, head_dim).
        keys: (length, kv_heads, head_dim), of consecutive positions up to the last of the n.
        values: Like ``keys``.
        mask: From `chunk_mask`.

    Returns:
        (n, heads * head_dim).
    """
    n, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.view(n, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    rows = grouped.reshape(1, kv_heads, -1, head_dim)
    out = F.scaled_dot_product_attention(
        rows, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], attn_mask=mask
    )
    return out.view(kv_heads, -1, n, head_dim).permute(2, 0, 1, 3).reshape(n, heads * head_dim)


def chunk_mask(
    config: ModelConfig,
    window: int | None,
    columns: range,
    n: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Return what `attend_chunk` adds to the scores of the last ``n`` positions of ``columns``.

    Shape (heads per key head * n, len(columns)); 0 where a row may look, else minus infinity.
    """
    keys = torch.arange(columns.start, columns.stop, device=device)
    rows = keys[-n:, None]
    hidden = keys > rows
    if window is not None:
        hidden |= keys <= rows - window
    mask = torch.zeros((n, len(columns)), dtype=dtype, device=device)
    return mask.masked_fill_(hidden, -math.inf).repeat(config.num_heads // config.num_kv_heads, 1)


def attend_position(query: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
    """Attention of one position over all that it sees.

    Args:
        query: (1, kv_heads, heads per key head, head_dim).
        keys_values: (2, kv_heads, length, head_dim), the position included.

    Returns:
        Like ``query``.
    """
    return F.scaled_dot_product_attention(query, keys_values[:1], keys_values[1:])
