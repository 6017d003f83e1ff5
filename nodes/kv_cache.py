"""KV slabs of requests under a hard limit. Knows nothing of attention or of messages.

A request's keys and values lie in one slab, contiguous by position, so that attention reads
them in place and a transfer is one copy per layer and kind. Slabs are counted in whole
blocks (`broker.placement.kv_reserved_tokens`), as every master counts; a full cache refuses,
it never grows past the limit. Freeing a slab gives its memory back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from broker.placement import kv_reserved_tokens
from broker.work import RequestKey


class KvFullError(Exception):
    """There is no room for the reservation now; whoever asked queues or preempts."""


class UnknownRequestError(KeyError):
    """The request is not open here: never opened, or released."""

    def __str__(self) -> str:
        return f"request {self.args[0]} is not open at this stage"


@dataclass(slots=True)
class Slab:
    """One request's KV.

    Attributes:
        data: (layers, 2, capacity, kv_heads, head_dim); keys at 0, values at 1.
        length: Positions that every layer has; what attention may read.
    """

    data: torch.Tensor
    length: int = 0

    @property
    def capacity(self) -> int:
        """Positions that the slab has room for."""
        return self.data.shape[2]


class KvCache:
    """The slabs of one stage.

    Attributes:
        limit_tokens: Positions of all requests together, whole blocks.
        used_tokens: Positions reserved now.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        limit_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self._shape = (num_layers, 2, num_kv_heads, head_dim)
        self._dtype = dtype
        self._device = device or torch.device("cpu")
        self._slabs: dict[RequestKey, Slab] = {}
        self.limit_tokens = limit_tokens
        self.used_tokens = 0

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._slabs

    def __getitem__(self, key: RequestKey) -> Slab:
        try:
            return self._slabs[key]
        except KeyError:
            raise UnknownRequestError(key) from None

    def open(self, key: RequestKey, num_tokens: int) -> None:
        """Reserve a slab for ``num_tokens`` positions.

        Raises:
            KvFullError: The limit would be passed; nothing changed.
            ValueError: The request is open already.
        """
        if key in self._slabs:
            raise ValueError(f"request {key} is open already")
        capacity = kv_reserved_tokens(num_tokens)
        self._check_room(capacity)
        self._slabs[key] = Slab(self._allocate(capacity))
        self.used_tokens += capacity

    def reserve(self, key: RequestKey, num_tokens: int) -> None:
        """Make sure that ``num_tokens`` positions fit; what is written stays.

        Raises:
            KvFullError: The limit would be passed; nothing changed.
        """
        slab = self[key]
        capacity = kv_reserved_tokens(num_tokens)
        added = capacity - slab.capacity
        if added <= 0:
            return
        self._check_room(added)
        larger = self._allocate(capacity)
        # Not only up to the length: a transfer may have written beyond it.
        larger[:, :, : slab.capacity] = slab.data
        slab.data = larger
        self.used_tokens += added

    def release(self, key: RequestKey) -> None:
        """Free the request's slab; nothing happens when it has none."""
        slab = self._slabs.pop(key, None)
        if slab is not None:
            self.used_tokens -= slab.capacity

    def _check_room(self, added: int) -> None:
        free = self.limit_tokens - self.used_tokens
        if added > free:
            raise KvFullError(
                f"{added} more KV positions asked, {free} of {self.limit_tokens} are free"
            )

    def _allocate(self, capacity: int) -> torch.Tensor:
        layers, kinds, heads, head_dim = self._shape
        # Not zeroed: the system hands out pages when they are written, and attention never
        # reads beyond what is.
        return torch.empty(
            (layers, kinds, capacity, heads, head_dim), dtype=self._dtype, device=self._device
        )
