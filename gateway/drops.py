"""Messages that are ignored: counted always, logged a few times each."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

logger = logging.getLogger(__name__)

_MAX_LOGGED: Final = 5
"""Warnings per kind; the count goes on. A flood must not fill the disk."""
_MAX_TEXT: Final = 300


class Drops:
    """What was dropped so far.

    Attributes:
        counts: Messages by kind.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, topic: str, reason: str, *, is_news: bool | None = None) -> None:
        """Count a message, and say so if it is one of the first of its kind.

        Args:
            kind: What is counted together.
            topic: Where it came from.
            reason: Names fields and types, never content.
            is_news: Whether to say so, where the caller knows better than the count.
        """
        self.counts[kind] += 1
        if is_news:
            logger.warning("dropped a part of %s: %s", _line(topic), _line(reason))
        elif is_news is None and self.counts[kind] <= _MAX_LOGGED:
            last = "; more of these are only counted" * (self.counts[kind] == _MAX_LOGGED)
            logger.warning("dropped a message on %s: %s%s", _line(topic), _line(reason), last)


def _line(text: str) -> str:
    """Return one line of bounded length: both come from strangers."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_TEXT])
