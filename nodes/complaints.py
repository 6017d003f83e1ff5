"""Dropped messages: counted always, logged once a minute for each kind and reason. Pure."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

_SILENCE_SECONDS: Final = 60.0
_MAX_KINDS: Final = 256


class Complaints:
    """A peer that sends rubbish a thousand times a second must not fill the disk."""

    def __init__(self, logger: logging.Logger) -> None:
        self.num_dropped = 0
        self._logger = logger
        self._logged_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def drop(self, kind: str, topic: str, reason: str, now: float) -> None:
        """Count a message of one kind of topic, and log it unless the same was logged just now.

        Args:
            kind: The kind of topic, without names in it.
            topic: The topic it came on.
            reason: Why it was dropped; never anything of its content.
            now: Monotonic seconds.
        """
        self.num_dropped += 1
        key = (kind, reason)
        logged_at = self._logged_at.get(key)
        if logged_at is not None and now - logged_at < _SILENCE_SECONDS:
            return
        self._logged_at[key] = now
        self._logged_at.move_to_end(key)
        # Reasons may differ with every message, as those of a fuzzer do.
        if len(self._logged_at) > _MAX_KINDS:
            self._logged_at.popitem(last=False)
        self._logger.warning("dropped a message on %s: %s", topic, reason)
