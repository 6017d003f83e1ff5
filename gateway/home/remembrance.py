"""The file by which a gateway knows, after a restart, what it has shown in Home Assistant.

Without it a gateway that shows nothing any more could not take back what it showed: a broker
that has restarted knows nothing of it, and Home Assistant keeps it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from broker.credentials import write_private

logger = logging.getLogger(__name__)

_FILE: Final = "home-assistant.json"


class Remembered(msgspec.Struct, frozen=True):
    """What was shown.

    Attributes:
        prefix: Of Home Assistant's discovery.
        topics: With something retained.
    """

    prefix: str
    topics: list[str]


class Remembrance:
    """The file in a gateway's state folder.

    Args:
        state: That folder.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / _FILE

    def recall(self) -> Remembered | None:
        """Return what is in the file; None: nothing is shown."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Remembered)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("%s cannot be read and is left aside: %s", self._path, error)
            return None

    def keep(self, prefix: str, topics: Iterable[str]) -> None:
        """Write down what is shown; the file goes when nothing is."""
        found = sorted(topics)
        try:
            if found:
                text = msgspec.json.encode(Remembered(prefix, found)).decode()
                write_private(self._path, text + "\n")
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            # What is shown goes on; only taking it back after a restart may miss some.
            logger.warning("%s cannot be written: %s", self._path, error)
