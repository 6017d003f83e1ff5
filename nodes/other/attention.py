"""Attention of models that transformers computes: ours, in the place of one of its own.

A block's own code asks for attention of queries, keys and values; what answers is whatever
`attending` says while it lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from broker.architecture import UnsupportedModelError
from nodes.decoder import Attend, Scores

NAME: Final = "e2llm"
"""Of this attention among those of transformers."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What attention of a block is planned to be.

    Attributes:
        window: Positions that a query sees; None: all.
        kv_shape: (kv_heads, head_dim) of keys, and of values.
    """

    window: int | None
    kv_shape: tuple[int, int]


_current: ContextVar[tuple[Attend, Expected]] = ContextVar("attend")


@contextmanager
def attending(attend: Attend, expected: Expected) -> Iterator[None]:
    """While it lasts, attention of blocks is computed by a function."""
    token = _current.set((attend, expected))
    try:
        yield
    finally:
        _current.reset(token)


@cache
def register() -> None:
    """Make it known to transformers, once."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend (1, heads, n, head_dim) as transformers asks an implementation to."""
    attend, expected = _current.get()
    length = getattr(module.config, "max_position_embeddings", 0)
    window = sliding_window if sliding_window is not None and sliding_window < length else None
    shapes = {(part.shape[1], part.shape[3]) for part in (key, value)}
    if window != expected.window or shapes != {expected.kv_shape}:
        raise UnsupportedModelError(
            f"{type(module).__name__} attends to {window or 'all'} positions with keys and values "
            f"of (heads, size) {sorted(shapes)}, where config.json says {expected.window or 'all'} "
            f"and {expected.kv_shape}; choose another checkpoint, or add its family "
            "(docs/adding-a-model-family.md)"
        )
    sinks = None if s_aux is None else s_aux.view(key.shape[1], -1)
    kv = torch.stack((key[0], value[0])).permute(2, 0, 1, 3)
    attended = attend(query[0].transpose(0, 1).contiguous(), kv, Scores(scaling, softcap, sinks))
    return attended.view(1, query.shape[2], query.shape[1], -1), None


def attend_plainly(query: torch.Tensor, kv: torch.Tensor, scores: Scores) -> torch.Tensor:
    """Attend a few positions, all of them to all before; only for comparisons."""
    per_head = query.shape[1] // kv.shape[2]
    keys, values = (part.repeat_interleave(per_head, 1) for part in kv.unbind(1))
    attended = F.scaled_dot_product_attention(
        query.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), is_causal=True
    )
    return attended.transpose(0, 1).flatten(1)
