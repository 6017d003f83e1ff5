"""KV slabs of requests under a hard limit. Knows nothing of attention or of messages.

A request's keys and values lie in one slab, contiguous by position, so that attention reads
them in place and a transfer is one copy per layer and kind. On the CPU a slab is a range of
addresses for all that the request may come to; memory comes page by page as positions are
written, and goes when they leave a layer's window or the request ends. Room is counted in
whole blocks (`broker.placement.kv_reserved_tokens`), as every master counts; a full cache
refuses, it never grows past the limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from broker.placement import KV_BLOCK_TOKENS, kv_reserved_tokens
from broker.work import RequestKey
from nodes.pages import Pages


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
        data: (layers, 2, positions, kv_heads, head_dim); keys at 0, values at 1.
        pages: The memory of ``data``; None where the device hands out no pages.
        capacity: Positions that are reserved, whole blocks; what may be written.
        length: Positions that every layer has; what attention may read.
        swept: Length at which memory behind the windows was last given back.
    """

    data: torch.Tensor
    pages: Pages | None
    capacity: int
    length: int = 0
    swept: int = 0


class KvCache:
    """The slabs of one stage.

    Args:
        windows: Of each layer: positions that a query sees, itself included; None: all.

    Attributes:
        limit_tokens: Positions of all requests together, whole blocks.
        used_tokens: Positions reserved now.
    """

    def __init__(
        self,
        windows: Sequence[int | None],
        num_kv_heads: int,
        head_dim: int,
        limit_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self._shape = (len(windows), num_kv_heads, head_dim)
        self._sliding = [(layer, w) for layer, w in enumerate(windows) if w is not None]
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

    def open(self, key: RequestKey, num_tokens: int, most_tokens: int = 0) -> None:
        """Reserve ``num_tokens`` positions of a slab that can grow to ``most_tokens`` in place.

        Raises:
            KvFullError: The limit would be passed, or the system has no memory; nothing
                changed.
            ValueError: The request is open already.
        """
        if key in self._slabs:
            raise ValueError(f"request {key} is open already")
        capacity = kv_reserved_tokens(num_tokens)
        self._check_room(capacity)
        most = min(kv_reserved_tokens(most_tokens), self.limit_tokens)
        self._slabs[key] = self._allocate(capacity, most)
        self.used_tokens += capacity

    def reserve(self, key: RequestKey, num_tokens: int) -> None:
        """Make sure that ``num_tokens`` positions fit; what is written stays.

        Raises:
            KvFullError: As `open`.
        """
        slab = self[key]
        capacity = kv_reserved_tokens(num_tokens)
        added = capacity - slab.capacity
        if added <= 0:
            return
        self._check_room(added)
        if capacity > slab.data.shape[2]:
            larger = self._allocate(capacity, capacity)
            # Not only up to the length: a transfer may have written beyond it.
            larger.data[:, :, : slab.capacity] = slab.data[:, :, : slab.capacity]
            slab.data, slab.pages = larger.data, larger.pages
            self._sweep(slab)
        slab.capacity = capacity
        self.used_tokens += added

    def set_length(self, slab: Slab, length: int) -> None:
        """Every layer has ``length`` positions; memory behind the windows goes."""
        slab.length = length
        if self._sliding and length - slab.swept >= KV_BLOCK_TOKENS:
            self._sweep(slab)

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

    def _allocate(self, capacity: int, most: int) -> Slab:
        layers, *heads = self._shape
        if self._device.type != "cpu":
            shape = (layers, 2, capacity, *heads)
            return Slab(torch.empty(shape, dtype=self._dtype, device=self._device), None, capacity)
        # A system that counts addresses as memory may refuse the longer range.
        for positions in (max(most, capacity), capacity):
            shape = (layers, 2, positions, *heads)
            try:
                pages = Pages(math.prod(shape) * self._dtype.itemsize)
            except OSError:
                continue
            return Slab(pages.tensor(shape, self._dtype), pages, capacity)
        raise KvFullError(f"the system has no memory for {capacity} KV positions")

    def _sweep(self, slab: Slab) -> None:
        """Give back what no later position sees."""
        slab.swept = slab.length
        if slab.pages is None:
            return
        per_layer, per_kind, per_position = (
            slab.data.stride(dimension) * slab.data.itemsize for dimension in range(3)
        )
        for layer, window in self._sliding:
            num_bytes = first_seen(window, slab.length) * per_position
            for kind in range(2):
                start = layer * per_layer + kind * per_kind
                slab.pages.forget(start, start + num_bytes)


def first_seen(window: int | None, position: int) -> int:
    """Return the first position that a query at ``position`` sees through a layer's window."""
    return 0 if window is None else max(0, position + 1 - window)
