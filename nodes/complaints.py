"""Dropped messages: counted always, logged once a minute for each kind and reason. Pure."""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import Final

_WINDOW_SECONDS: Final = 60.0
_MAX_LINES: Final = 20
_MAX_TEXT: Final = 300
# What differs between two messages that are wrong in the same way.
_VARIABLE: Final = re.compile(r"'[^']*'|`[^`]*`|[0-9]+")


class Complaints:
    """A peer that sends rubbish a thousand times a second must not fill the disk."""

    def __init__(self, logger: logging.Logger) -> None:
        self.num_dropped = 0
        self._logger = logger
        self._window_began = 0.0
        self._known: set[tuple[str, str]] = set()
        self._lines: Counter[str] = Counter()

    def drop(self, kind: str, topic: str, reason: str, now: float) -> None:
        """Count a message of one kind of topic, and log it unless that was done just now.

        Args:
            kind: The kind of topic, without names in it; at most 20 lines a minute each.
            topic: The topic it came on.
            reason: Why it was dropped; never anything of its content.
            now: Monotonic seconds.
        """
        self.num_dropped += 1
        if now - self._window_began >= _WINDOW_SECONDS:
            self._window_began = now
            self._known.clear()
            self._lines.clear()
        key = (kind, _VARIABLE.sub("", reason))
        if key in self._known or self._lines[kind] >= _MAX_LINES:
            return
        self._known.add(key)
        self._lines[kind] += 1
        self._logger.warning("dropped a message on %s: %s", _printable(topic), _printable(reason))


def _printable(text: str) -> str:
    """Return one line of bounded length: both come from strangers."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_TEXT])
