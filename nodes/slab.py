"""One request's KV in one piece of memory. Knows nothing of attention, limits or messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from broker.placement import KV_BLOCK_TOKENS, kv_reserved_tokens
from broker.prefix import Prefix
from nodes.pages import Pages


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a request's prompt begins: what of it was kept before, and is to be kept again.

    Attributes:
        prefix: Its whole chunks.
        held_tokens: Leading positions that an ended request has left here; whole chunks.
        received_tokens: Positions that come from another replica; 0: they are computed here.
        is_rounded: They come rounded, so they are not what would be computed here.
    """

    prefix: Prefix
    held_tokens: int = 0
    received_tokens: int = 0
    is_rounded: bool = False


@dataclass(slots=True)
class Slab:
    """One request's KV.

    Attributes:
        data: (layers, 2, positions, kv_heads, head_dim); keys at 0, values at 1.
        pages: The memory of ``data``; None where the device hands out no pages.
        capacity: Positions that are reserved, whole blocks; what may be written.
        length: Positions that every layer has; what attention may read.
        swept: Length at which memory behind the windows was last given back.
        beginning: What is kept of it when the request ends; None: nothing.
        keep: Position from which a later prompt may go on: what it sees there stays.
    """

    data: torch.Tensor
    pages: Pages | None
    capacity: int
    length: int = 0
    swept: int = 0
    beginning: Beginning | None = None
    keep: int = 0

    def sweep(self, windows: Sequence[int | None], length: int) -> None:
        """Give back what neither a position from ``length`` on nor a later prompt sees.

        ``windows`` are those of the layers.
        """
        self.swept = length
        for layer, window in enumerate(windows):
            end = first_seen(window, length)
            self._forget(layer, 0, min(end, first_seen(window, self.keep)))
            self._forget(layer, self.keep, end)

    def cut(self, num_tokens: int) -> None:
        """Keep the first positions alone, and the memory of these."""
        self.length = num_tokens
        self.swept = min(self.swept, num_tokens)
        end = self.data.shape[2]
        if self.pages is None:
            self.capacity = end  # The memory stays as a whole.
            return
        self.capacity = kv_reserved_tokens(num_tokens)
        for layer in range(self.data.shape[0]):
            self._forget(layer, self.capacity, end)

    def copy_beginning(self, source: Slab, num_tokens: int, windows: Sequence[int | None]) -> None:
        """Take over the first positions of another slab, as far as later ones see them."""
        for layer, window in enumerate(windows):
            # Whole blocks, as chunks read them: what is masked must still be numbers.
            first = first_seen(window, num_tokens) // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
            part = source.data[layer, :, first:num_tokens]
            self.data[layer, :, first:num_tokens] = part
        self.length = self.swept = num_tokens

    def _forget(self, layer: int, start: int, end: int) -> None:
        """Give back the memory of positions ``[start, end)`` of a layer."""
        if self.pages is None or start >= end:
            return
        per_layer, per_kind, per_position = (
            self.data.stride(dimension) * self.data.itemsize for dimension in range(3)
        )
        for kind in range(2):
            base = layer * per_layer + kind * per_kind
            self.pages.forget(base + start * per_position, base + end * per_position)


def first_seen(window: int | None, position: int) -> int:
    """Return the first position that a query at ``position`` sees through a layer's window."""
    return 0 if window is None else max(0, position + 1 - window)
