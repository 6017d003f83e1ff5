"""A file that says: this process is connected. What a container's health check looks at."""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger(__name__)


class Heartbeat:
    """Touches ``<folder>/alive`` at most every few seconds while the process is connected.

    Args:
        folder: The process's state folder; None: no file.
        interval_seconds: Shortest time between two touches.
    """

    def __init__(self, folder: Path | None, interval_seconds: float = 5.0) -> None:
        self._path = folder / "alive" if folder is not None else None
        self._interval_seconds = interval_seconds
        self._beat_at = float("-inf")

    def beat(self, now: float) -> None:
        """The process is connected at ``now`` (monotonic seconds)."""
        if self._path is None or now - self._beat_at < self._interval_seconds:
            return
        self._beat_at = now
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        except OSError as error:
            # The work goes on; only the health check misses it.
            logger.warning("cannot touch %s: %s", self._path, error)
            self._path = None
