"""KV transfer from a prefill stage to a decode stage: credit, repeats and coverage. Pure.

One stream per pair of stages. The sender cuts what prefill produced into chunks in a fixed
order, so a cumulative byte offset names a place in the stream; it goes back to the receiver's
offset when nothing moves (go-back-N). The receiver accepts chunks in any order and any number
of times: its coverage map, not their order, decides when the KV is complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from broker.plan import LayerRange

_MOST_PATIENCE: Final = 8
"""Times as long as at first that a sender waits before it goes back once more."""


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Where one chunk lies in the KV and in the stream."""

    layers: LayerRange
    position: int
    num_positions: int
    offset: int
    num_bytes: int


class KvSender:
    """One stream, seen from the prefill stage. Knows places, never bytes.

    Args:
        layers: Layers that both stages hold.
        first_positions: Of each of them, the first position that decode will see.
        num_positions: Positions that prefill will produce.
        entry_bytes: KV bytes of one position of one layer.
        chunk_bytes: Aim for the size of a chunk; a single entry may be larger.
        credit_bytes: Initial credit, from the decode grant.
    """

    def __init__(
        self,
        layers: LayerRange,
        first_positions: Sequence[int],
        num_positions: int,
        entry_bytes: int,
        chunk_bytes: int,
        credit_bytes: int,
        now: float,
    ) -> None:
        self.layers = layers
        self.total = sum(num_positions - first for first in first_positions) * entry_bytes
        self.received = 0
        self.repeats = 0
        self._runs = list(_runs(layers, first_positions))
        self._entry_bytes = entry_bytes
        self._chunk_bytes = chunk_bytes
        # A chunk larger than the credit could never leave.
        self._largest = max(chunk_bytes, entry_bytes)
        self._credit = max(credit_bytes, self._largest)
        self._places: list[ChunkPlace] = []
        self._produced = 0
        self._next = 0
        self._moved_at = now

    @property
    def is_done(self) -> bool:
        """Whether the receiver confirmed every byte."""
        return self.received >= self.total

    def produce(self, start: int, end: int) -> None:
        """Positions ``[start, end)`` are in the sender's KV now."""
        for run, first in self._runs:
            for layers in self._groups(run):
                per_position = len(layers) * self._entry_bytes
                step = max(1, self._chunk_bytes // per_position)
                for position in range(max(start, first), end, step):
                    count = min(step, end - position)
                    size = count * per_position
                    self._places.append(ChunkPlace(layers, position, count, self._produced, size))
                    self._produced += size

    def _groups(self, run: LayerRange) -> Iterator[LayerRange]:
        layers_at_once = max(1, self._chunk_bytes // self._entry_bytes)
        for first in range(run.start, run.end, layers_at_once):
            yield LayerRange(first, min(first + layers_at_once, run.end))

    def take(self, now: float) -> Iterator[ChunkPlace]:
        """Yield the chunks that the credit allows to be sent now."""
        while self._next < len(self._places):
            place = self._places[self._next]
            if place.offset + place.num_bytes > self._credit:
                return
            if self._sent == self.received:
                self._moved_at = now  # The wait for an answer begins with the first open byte.
            self._next += 1
            yield place

    def confirm(self, received: int, credit: int, now: float) -> None:
        """Take in the receiver's cumulative offsets; older ones change nothing."""
        if received > self.received:
            self.received = min(received, self.total)
            self._moved_at = now
            self.repeats = 0
        # One chunk may always leave: what is shared among many could be less than that.
        self._credit = max(self._credit, credit, self.received + self._largest)

    def go_back_if_stuck(self, now: float, patience_seconds: float) -> bool:
        """Rewind to the receiver's offset when nothing moved for a while; True if it did.

        Twice as long each time: on a slow link what was sent may still be on its way, and
        sending it again makes that longer.
        """
        patience = patience_seconds * min(2**self.repeats, _MOST_PATIENCE)
        if self._sent <= self.received or now - self._moved_at < patience:
            return False
        while self._next and self._places[self._next - 1].offset >= self.received:
            self._next -= 1
        self._moved_at = now
        self.repeats += 1
        return True

    @property
    def _sent(self) -> int:
        if not self._next:
            return 0
        last = self._places[self._next - 1]
        return last.offset + last.num_bytes


@dataclass(slots=True)
class _Stream:
    received: int = 0
    total: int = 0
    early: dict[int, int] = field(default_factory=dict)


class KvReceiver:
    """All streams into one decode stage for one request, and its coverage map.

    Args:
        first_positions: Of each of ``layers``, the first position that is awaited.
        num_positions: Positions before the first that is decoded.
    """

    def __init__(
        self,
        layers: LayerRange,
        first_positions: Sequence[int],
        num_positions: int,
        window_bytes: int,
    ) -> None:
        self.layers = layers
        self.num_positions = num_positions
        self._window_bytes = window_bytes
        self._covered = {
            layer: bytearray(b"\x01" * first + bytes(num_positions - first))
            for layer, first in zip(range(*_bounds(layers)), first_positions, strict=True)
        }
        self._missing = sum(row.count(0) for row in self._covered.values())
        self._streams: dict[int, _Stream] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every layer has every position."""
        return self._missing == 0

    def check(self, place: ChunkPlace) -> None:
        """Raise ValueError when the chunk lies outside this stage's layers or positions."""
        end = place.position + place.num_positions
        if not (
            self.layers.start <= place.layers.start
            and place.layers.end <= self.layers.end
            and 0 <= place.position < end <= self.num_positions
        ):
            raise ValueError(
                f"chunk of layers [{place.layers.start}, {place.layers.end}) and positions "
                f"[{place.position}, {end}) lies outside this stage's "
                f"[{self.layers.start}, {self.layers.end}) x {self.num_positions}"
            )

    def accept(
        self, sender_stage: int, place: ChunkPlace, total: int, num_receiving: int = 1
    ) -> tuple[int, int]:
        """Mark a checked and written chunk; return (received, credit) for its stream.

        Args:
            sender_stage: Whose stream it belongs to.
            place: Of the chunk.
            total: Bytes of the stream.
            num_receiving: Requests that share this stage's window now.
        """
        end = place.position + place.num_positions
        ones = b"\x01" * place.num_positions
        for layer in range(*_bounds(place.layers)):
            row = self._covered[layer]
            self._missing -= place.num_positions - row.count(1, place.position, end)
            row[place.position : end] = ones
        stream = self._streams.setdefault(sender_stage, _Stream())
        stream.total = total
        if place.offset >= stream.received:
            stream.early[place.offset] = place.num_bytes
        while (size := stream.early.pop(stream.received, None)) is not None:
            stream.received += size
        return stream.received, stream.received + self._window_bytes // max(num_receiving, 1)


def _runs(layers: LayerRange, firsts: Sequence[int]) -> Iterator[tuple[LayerRange, int]]:
    """Yield runs of layers that begin at the same position, and that position."""
    start = layers.start
    for first, run in groupby(firsts):
        end = start + sum(1 for _ in run)
        yield LayerRange(start, end), first
        start = end


def _bounds(layers: LayerRange) -> tuple[int, int]:
    return layers.start, layers.end
