"""KV slabs of requests under a hard limit. Knows nothing of attention or of messages.

A request's keys and values lie in one slab, contiguous by position, so that attention reads
them in place and a transfer is one copy per layer and kind. On the CPU a slab is a range of
addresses for all that the request may come to; memory comes page by page as positions are
written, and goes when they leave a layer's window or the request ends. Room is counted in
whole blocks (`broker.placement.kv_reserved_tokens`), as every master counts; a full cache
refuses, it never grows past the limit. Of ended requests the beginnings stay for prompts that
begin alike, in room that nobody needs (`nodes.retained`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from broker.placement import KV_BLOCK_TOKENS, kv_reserved_tokens
from broker.work import RequestKey
from nodes.pages import Pages
from nodes.retained import Entry, RetainedSlabs
from nodes.slab import Beginning, Slab


class KvFullError(Exception):
    """There is no room for the reservation now; whoever asked queues or preempts."""


class UnknownRequestError(KeyError):
    """The request is not open here: never opened, or released."""

    def __str__(self) -> str:
        return f"request {self.args[0]} is not open at this stage"


class KvCache:
    """The slabs of one stage.

    Args:
        windows: Of each layer: positions that a query sees, itself included; None: all.
        model_windows: Of all layers of the model; None: there are no others.

    Attributes:
        used_tokens: Positions reserved now.
        retained: What ended requests have left, in the room that is not reserved.
    """

    def __init__(
        self,
        windows: Sequence[int | None],
        num_kv_heads: int,
        head_dim: int,
        limit_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        model_windows: Sequence[int | None] | None = None,
    ) -> None:
        self._shape = (len(windows), num_kv_heads, head_dim)
        self._windows = tuple(windows)
        self._slides = any(window is not None for window in windows)
        self._dtype = dtype
        self._device = device or torch.device("cpu")
        self._slabs: dict[RequestKey, Slab] = {}
        self._limit_tokens = limit_tokens
        self.used_tokens = 0
        self.retained = RetainedSlabs(windows if model_windows is None else model_windows)

    @property
    def limit_tokens(self) -> int:
        """Positions of all requests together, whole blocks."""
        return self._limit_tokens

    @limit_tokens.setter
    def limit_tokens(self, num_tokens: int) -> None:
        self._limit_tokens = num_tokens
        self.retained.shrink(num_tokens - self.used_tokens)

    def __contains__(self, key: RequestKey) -> bool:
        return key in self._slabs

    def __getitem__(self, key: RequestKey) -> Slab:
        try:
            return self._slabs[key]
        except KeyError:
            raise UnknownRequestError(key) from None

    def open(
        self,
        key: RequestKey,
        num_tokens: int,
        most_tokens: int = 0,
        beginning: Beginning | None = None,
    ) -> None:
        """Reserve ``num_tokens`` positions of a slab that can grow to ``most_tokens`` in place.

        With a ``beginning`` the slab has its held positions already, and `release` keeps what
        may serve later prompts.

        Raises:
            KvFullError: The limit would be passed, or the system has no memory; the request
                is not open.
            NotHeldError: What should be held is not; nothing changed.
            ValueError: The request is open already.
        """
        if key in self._slabs:
            raise ValueError(f"request {key} is open already")
        capacity = kv_reserved_tokens(num_tokens)
        most = min(kv_reserved_tokens(most_tokens), self.limit_tokens)
        if beginning is None:
            self._make_room(capacity)
            slab = self._allocate(capacity, most)
        else:
            slab = self._begun(beginning, capacity, most)
            slab.beginning, slab.keep = beginning, self._keep(beginning)
        self._slabs[key] = slab
        self.used_tokens += slab.capacity

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
        self._make_room(added)
        self._grow(slab, capacity, capacity)
        self.used_tokens += added

    def next_positions(self, keys: Sequence[RequestKey]) -> list[tuple[Slab, int]]:
        """Reserve the next position of each key's request; where a key comes again, the one after.

        Raises:
            KvFullError: As `open`.
        """
        ends = {key: self[key].length for key in keys}
        for key, num_positions in Counter(keys).items():
            self.reserve(key, ends[key] + num_positions)
        found = []
        for key in keys:
            found.append((self[key], ends[key]))
            ends[key] += 1
        return found

    def advance(self, keys: Sequence[RequestKey]) -> None:
        """Every layer has what `next_positions` gave; a request's first is certain to stay."""
        for key, num_positions in Counter(keys).items():
            slab = self[key]
            self.set_length(slab, slab.length + num_positions, slab.length + 1)

    def set_length(self, slab: Slab, length: int, certain: int | None = None) -> None:
        """Every layer has ``length`` positions; memory behind the windows goes.

        With ``certain`` the length may be cut back as far as that, so the windows of the
        positions from there on stay whole.
        """
        slab.length = length
        certain = length if certain is None else certain
        if self._slides and certain - slab.swept >= KV_BLOCK_TOKENS:
            slab.sweep(self._windows, certain)

    def release(self, key: RequestKey) -> None:
        """Free the request's slab, but for what is kept; nothing happens when it has none."""
        slab = self._slabs.pop(key, None)
        if slab is None:
            return
        self.used_tokens -= slab.capacity
        if slab.beginning is None:
            return
        seen_from = min(slab.length, slab.keep)
        prefix = slab.beginning.prefix.within(seen_from)
        if prefix.num_tokens:
            slab.cut(prefix.num_tokens)
            self.retained.add(Entry(prefix, slab, slab.beginning.is_rounded, seen_from))
            self.retained.shrink(self.limit_tokens - self.used_tokens)

    def _begun(self, beginning: Beginning, capacity: int, most: int) -> Slab:
        """Return a slab that has the held positions of a prompt."""
        held, retained = beginning.held_tokens, self.retained
        if not held:
            self._make_room(capacity)
            return self._allocate(capacity, most)
        source = retained.find(beginning.prefix, held, is_rounded=beginning.is_rounded)
        self._make_room(capacity, source)
        if self.used_tokens + capacity + retained.tokens <= self.limit_tokens:
            slab = self._allocate(capacity, most)
            slab.copy_beginning(source.slab, held, self._windows)
            return slab
        # Room for one of them alone: the request goes on with what was kept.
        slab = retained.take(source)
        slab.cut(held)
        self._grow(slab, max(capacity, slab.capacity), most)
        return slab

    def _keep(self, beginning: Beginning) -> int:
        """Return the position from which later prompts can go on."""
        end = beginning.prefix.num_tokens
        # What another replica sends is what decode sees, which may be too little.
        is_whole = self.retained.sees_alike(end, max(beginning.received_tokens, end))
        return end if is_whole else 0

    def _make_room(self, added: int, spared: Entry | None = None) -> None:
        """Free kept beginnings for ``added`` positions; `KvFullError` where that is too little."""
        free = self.limit_tokens - self.used_tokens
        if added > free:
            raise KvFullError(
                f"{added} more KV positions asked, {free} of {self.limit_tokens} are free"
            )
        self.retained.shrink(free - added, spared)

    def _grow(self, slab: Slab, capacity: int, most: int) -> None:
        """Let a slab have ``capacity`` positions, in another place if this one is too small."""
        if capacity > slab.data.shape[2]:
            larger = self._allocate(capacity, most)
            # Not only up to the length: a transfer may have written beyond it.
            larger.data[:, :, : slab.capacity] = slab.data[:, :, : slab.capacity]
            slab.data, slab.pages = larger.data, larger.pages
            slab.sweep(self._windows, slab.length)
        slab.capacity = capacity

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
