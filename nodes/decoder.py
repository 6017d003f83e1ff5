"""The arithmetic of a decoder block of the Llama family, on plain tensors.

Knows nothing of requests, caches or stages. Linears take any number of rows; attention is
two functions, one for a chunk of a prompt and one for a single position, and which one
computes a position never depends on when or with whom it is computed (design, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from broker.architecture import ModelConfig, QkNorm
from nodes.activations import Norm
from nodes.feed_forward import FeedForward
from nodes.packed import Linear
from nodes.rotary import rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeights:
    """One block's weights; projections that share their input are one matrix.

    Attributes:
        qkv: ((num_heads + 2 * num_kv_heads) * head_dim, hidden); rows of q, then k, then v.
        sinks: As of `Scores`.
    """

    before_attention: Norm | None
    qkv: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    sinks: torch.Tensor | None
    output: Linear
    after_attention: Norm | None
    before_feed_forward: Norm | None
    feed_forward: FeedForward
    after_feed_forward: Norm | None

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        norms = (
            self.before_attention,
            self.q_norm,
            self.k_norm,
            self.after_attention,
            self.before_feed_forward,
            self.after_feed_forward,
        )
        total = sum(norm.num_bytes for norm in norms if norm is not None)
        total += 0 if self.sinks is None else self.sinks.nbytes
        return total + self.qkv.num_bytes + self.output.num_bytes + self.feed_forward.num_bytes


@dataclass(frozen=True, slots=True)
class Scores:
    """How queries times keys become shares.

    Attributes:
        scale: None: 1 / sqrt(head_dim).
        cap: c of c * tanh(scores / c); None: scores as they are.
        sinks: (kv_heads, heads per key head): what each head may look at beside positions,
            and which has no value; None: nothing.
    """

    scale: float | None = None
    cap: float | None = None
    sinks: torch.Tensor | None = None


Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of some positions."""

Attend = Callable[[torch.Tensor, torch.Tensor, Scores], torch.Tensor]
"""Attention of rows: queries, and keys beside values, as `Block.project` gives them, to
(n, heads * head_dim)."""


class Block:
    """One decoder block: what comes before attention and what comes after it.

    Attributes:
        weights: What it is made of.
    """

    def __init__(self, config: ModelConfig, weights: BlockWeights) -> None:
        self._config, self.weights = config, weights
        scales = config.scales
        self._scores = Scores(scales.scores, scales.scores_cap, weights.sinks)

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return self.weights.num_bytes

    def run(
        self, hidden: torch.Tensor, rotary: Rotary | None, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Return the block's output (n, hidden) of its input, at positions that are rotated so."""
        q, kv = self.project(hidden, rotary)
        return self.finish(hidden, attend(q, kv, self._scores))

    def project(
        self, hidden: torch.Tensor, rotary: Rotary | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what attention takes of all rows, in the memory of one product.

        Rotated queries (n, heads, head_dim), and keys, rotated, beside values:
        (n, 2, kv_heads, head_dim).
        """
        config, weights = self._config, self.weights
        qkv = weights.qkv(hidden, weights.before_attention).view(len(hidden), -1, config.head_dim)
        q, kv = torch.split(qkv, [config.num_heads, 2 * config.num_kv_heads], 1)
        if weights.q_norm is not None and weights.k_norm is not None:
            for norm, part in ((weights.q_norm, q), (weights.k_norm, kv[:, : config.num_kv_heads])):
                rows = part.flatten(1) if config.qk_norm is QkNorm.ROW else part
                part.copy_(norm(rows).view(part.shape))
        rotate(qkv[:, : config.num_heads + config.num_kv_heads], rotary)
        return q, kv.view(len(hidden), 2, config.num_kv_heads, config.head_dim)

    def finish(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Return the block's output from its input and the attention's (n, heads * head_dim)."""
        weights = self.weights
        hidden = self._join(hidden, partial(weights.output, attended), weights.after_attention)
        feed_forward = partial(weights.feed_forward, hidden, weights.before_feed_forward)
        return self._join(hidden, feed_forward, weights.after_feed_forward)

    def _join(
        self, hidden: torch.Tensor, part: Callable[..., torch.Tensor], norm: Norm | None
    ) -> torch.Tensor:
        """Return ``hidden`` plus what ``part`` gives, normalised; by its own sum if it can be."""
        scale = self._config.scales.residual
        if norm is None and scale == 1:
            return part(residual=hidden)
        added = part() if norm is None else norm(part())
        return torch.add(hidden, added, alpha=scale)


def attend_chunk(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scores: Scores,
) -> torch.Tensor:
    """Attention of n consecutive positions over everything up to them.

    The queries of the heads that share a key head stand below each other as rows, so keys
    and values are never repeated.

    Args:
        query: (n, heads, head_dim).
        keys: (length, kv_heads, head_dim), of consecutive positions up to the last of the n.
        values: Like ``keys``.
        mask: From `chunk_mask`.
        scores: Of the block.

    Returns:
        (n, heads * head_dim).
    """
    n, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.view(n, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    rows = grouped.reshape(1, kv_heads, -1, head_dim)
    out = _attend(rows, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], mask, scores)
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


def attend_position(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scores: Scores
) -> torch.Tensor:
    """Attention of one position over all that it sees.

    Args:
        query: (1, kv_heads, heads per key head, head_dim).
        keys: (1, kv_heads, length, head_dim), the position included.
        values: Like ``keys``.
        scores: Of the block.

    Returns:
        Like ``query``.
    """
    return _attend(query, keys, values, None, scores)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scores: Scores,
) -> torch.Tensor:
    """Attend (1, kv_heads, rows, head_dim); torch's own kernel has neither cap nor sinks."""
    if scores.cap is None and scores.sinks is None:
        return F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scores.scale
        )
    scale = scores.scale or query.shape[-1] ** -0.5
    # In float32, as inside torch's kernel: rounded to bfloat16, scores would be far off.
    logits = query.float() @ keys.float().transpose(2, 3) * scale
    if scores.cap is not None:
        logits = scores.cap * torch.tanh(logits / scores.cap)
    if mask is not None:
        logits = logits + mask
    if scores.sinks is not None:
        # Rows are heads of a key head, and for each of them positions.
        per_head = query.shape[2] // scores.sinks.shape[1]
        sinks = scores.sinks.repeat_interleave(per_head, 1)[None, ..., None]
        logits = torch.cat((logits, sinks.float()), -1)
    shares = logits.softmax(-1)[..., : keys.shape[2]]
    return (shares @ values.float()).to(query.dtype)
