"""Names and sizes that planner, nodes and gateway must compute alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from broker.plan import LayerRange
from broker.work import ReserveKind

KV_BLOCK_TOKENS = 32
"""Positions in one KV block; reservations are counted in whole blocks everywhere."""

WAITING_ROWS: Final = 2
"""Requests that may be complete beyond a decode replica's slots before it is granted no more.

They wait for a row so that none stays empty while a prompt is prefilled; more of them would
be bound too early to a replica that is slow (decision 0016).
"""


def replica_id(
    revision: str,
    weights: str,
    stages: Sequence[tuple[str, LayerRange]],
    kv_format: str = "float32",
    kv_transfer: str = "exact",
) -> str:
    """Return the id of a replica: a hash of model, formats and its stages.

    The id changes only when these do, so a replica keeps its requests across plan versions and
    role changes. Where the KV format or its transfer changes it must, since no request goes on
    with a cache in another format. The usual formats add nothing: the ids of fogs that run stay.
    """
    kv = [] if (kv_format, kv_transfer) == ("float32", "exact") else [kv_format, kv_transfer]
    text = "|".join([revision, weights, *kv, *(f"{d}:{r.start}-{r.end}" for d, r in stages)])
    return "r-" + hashlib.sha256(text.encode()).hexdigest()[:10]


def kv_reserved_tokens(num_tokens: int) -> int:
    """Round up to whole blocks; what a request of ``num_tokens`` positions occupies."""
    return -(-num_tokens // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS


def room_tokens(kind: ReserveKind, known_tokens: int) -> int:
    """Return the KV positions that a grant takes; decode writes at least one more."""
    return kv_reserved_tokens(known_tokens + (kind is not ReserveKind.PREFILL))


def whole_tokens(kind: ReserveKind, known_tokens: int, max_tokens: int) -> int:
    """Return the KV positions to which a request may grow where it is granted room."""
    later = 0 if kind is ReserveKind.PREFILL else max(max_tokens, 1)
    return kv_reserved_tokens(known_tokens + later)
