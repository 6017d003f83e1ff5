"""KV of ended requests, for prompts that begin alike; what was not used for longest goes first.

What is here takes no room from anybody: it goes when a request needs it. All stages of a
replica keep and use the same, since they open and release the same requests; where one does
not, it says so, and the request is computed from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker.prefix import Prefix
from nodes.slab import Slab, first_seen


class NotHeldError(Exception):
    """Nothing here begins so (any more); the request has to be computed from its beginning."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What an ended request has left.

    Attributes:
        prefix: The chunks that are kept.
        is_rounded: They came rounded from another replica.
        seen_from: What a query at this position sees is there; nothing else need be.
    """

    prefix: Prefix
    slab: Slab
    is_rounded: bool
    seen_from: int


class RetainedSlabs:
    """The entries of one stage.

    Args:
        windows: Of all layers of the model, not only of the stage: so every stage comes to
            the same answer.

    Attributes:
        tokens: Positions that are kept, whole blocks.
    """

    def __init__(self, windows: Iterable[int | None]) -> None:
        self._windows = frozenset(window for window in windows if window is not None)
        self._entries: list[Entry] = []
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def sees_alike(self, earlier: int, later: int) -> bool:
        """Whether who has what a query at ``later`` sees can go on from ``earlier`` too."""
        return all(first_seen(w, later) <= first_seen(w, earlier) for w in self._windows)

    def held_tokens(self, prefix: Prefix, *, is_rounded: bool = False) -> int:
        """Return how many leading positions of a prompt are here; whole chunks."""
        return max((self._served(e, prefix, is_rounded) for e in self._entries), default=0)

    def find(self, prefix: Prefix, num_tokens: int, *, is_rounded: bool = False) -> Entry:
        """Return an entry with the first ``num_tokens`` positions, and count this as its use.

        Raises:
            NotHeldError: There is none.
        """
        asked = prefix.within(num_tokens)
        for entry in reversed(self._entries):
            if self._served(entry, asked, is_rounded) == num_tokens:
                self._entries.remove(entry)
                self._entries.append(entry)
                return entry
        raise NotHeldError(f"no KV is kept of a prompt that begins with these {num_tokens} tokens")

    def add(self, entry: Entry) -> None:
        """Keep what a request leaves, in the place of entries that it makes needless."""
        if not self._covers(entry, entry):
            return  # Cut short: nobody could go on from it.
        needed = [each for each in self._entries if not self._covers(entry, each)]
        for each in needed:
            if self._covers(each, entry):
                self._entries.remove(each)
                self._entries.append(each)
                return
        self._entries = [*needed, entry]
        self.tokens = sum(each.slab.capacity for each in self._entries)

    def take(self, entry: Entry) -> Slab:
        """Return the slab of an entry, which is gone from here."""
        self._entries.remove(entry)
        self.tokens -= entry.slab.capacity
        return entry.slab

    def shrink(self, num_tokens: int, spared: Entry | None = None) -> None:
        """Free what was not used for longest until at most ``num_tokens`` are kept."""
        for entry in list(self._entries):
            if self.tokens <= num_tokens:
                return
            if entry is not spared:
                self.take(entry)

    def _served(self, entry: Entry, prefix: Prefix, is_rounded: bool) -> int:
        if entry.is_rounded is not is_rounded:
            return 0
        shared = entry.prefix.shared_tokens(prefix)
        # From an earlier position on, less would be there, not more.
        return shared if self.sees_alike(shared, entry.seen_from) else 0

    def _covers(self, entry: Entry, other: Entry) -> bool:
        """Whether ``entry`` serves all prompts that ``other`` does."""
        return self._served(entry, other.prefix, other.is_rounded) == other.prefix.num_tokens
