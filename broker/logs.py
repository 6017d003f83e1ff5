"""The log of a process: text for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

_FIELDS: Final = ("request_id", "state", "prompt_tokens", "answer_tokens", "seconds")
"""What a line may say in ``extra`` beside its text."""


class LogFormat(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """Makes each record one line, whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return an object with ``time`` in UTC, ``level``, ``logger``, ``message`` and fields."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": at,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {
            name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_log(level: int | str, form: LogFormat = LogFormat.TEXT) -> None:
    """Log to standard error from ``level`` on."""
    handler = logging.StreamHandler()
    if form is LogFormat.JSON:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
