"""What may come next, looked up in the text so far. Pure.

Prompt lookup (Saxena, "Prompt Lookup Decoding", 2023): where the last tokens stood before, what
followed them then is proposed. Occurrences of the same two tokens are chained, as in LZ77
compressors, so that a look-up takes the same time in a long text as in a short one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_TRIED: Final = 16
"""Occurrences of the last two tokens, newest first, of which the best is taken."""
_LONGEST: Final = 32
"""Tokens of agreement beyond which an occurrence is not compared."""


class PromptLookup:
    """The tokens of one request, and where each pair of them stood before."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        # Where the text went on after the newest occurrence of a pair, and for each position
        # after a pair, where it went on after the occurrence before that one.
        self._newest: dict[tuple[int, int], int] = {}
        self._before: list[int] = [-1]

    def __len__(self) -> int:
        return len(self._ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take in the next tokens of the text."""
        ids = self._ids
        for token_id in token_ids:
            before = -1
            if ids:
                pair = ids[-1], token_id
                before = self._newest.get(pair, -1)
                self._newest[pair] = len(ids) + 1
            ids.append(token_id)
            self._before.append(before)

    def propose(self, most: int) -> tuple[int, ...]:
        """Return what may follow, ``most`` tokens or fewer.

        No more than agreed before: the longer the agreement, the further it is trusted.
        """
        ids = self._ids
        end, best, agreed = len(ids), 0, 0
        candidate = self._before[end]
        for _ in range(_TRIED):
            if candidate < 0 or agreed >= min(most, _LONGEST):
                break
            length = self._agreement(candidate)
            if length > agreed:
                best, agreed = candidate, length
            candidate = self._before[candidate]
        proposed: list[int] = []
        for at in range(best, best + min(agreed, most)):
            # Beyond the end, the text repeats what was just proposed.
            proposed.append(ids[at] if at < end else proposed[at - end])
        return tuple(proposed)

    def _agreement(self, earlier: int) -> int:
        """Return how many tokens before ``earlier`` are those before the end."""
        ids, end = self._ids, len(self._ids)
        length = 2
        while (
            length < min(earlier, _LONGEST) and ids[earlier - 1 - length] == ids[end - 1 - length]
        ):
            length += 1
        return length
