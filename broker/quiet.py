"""Hours in which a device is left alone, as a person writes them: ``22:00-07:00``. Pure."""

from __future__ import annotations

import re
from typing import Final

_SPAN: Final = re.compile(r"\s*(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s*")
_DAY_SECONDS: Final = 86_400


def parse_quiet_hours(text: str) -> tuple[tuple[int, int], ...]:
    """Return the spans of ``22:00-07:00, 12:30-13:00`` in seconds of the day.

    A span that ends before it begins goes over midnight.

    Raises:
        ValueError: It is none; says what was expected.
    """
    spans = []
    for part in text.split(","):
        found = _SPAN.fullmatch(part)
        hours = [int(group) for group in found.groups()] if found is not None else []
        if not hours or max(hours[1], hours[3]) > 59 or not _is_day(hours):
            raise ValueError(f'quiet hours {text!r} are not like "22:00-07:00"')
        start, end = 3600 * hours[0] + 60 * hours[1], 3600 * hours[2] + 60 * hours[3]
        if start == end:
            raise ValueError(f"quiet hours {text!r} begin when they end")
        spans.append((start, end))
    return tuple(spans)


def _is_day(hours: list[int]) -> bool:
    return all(60 * hours[i] + hours[i + 1] <= 24 * 60 for i in (0, 2))


def is_quiet(text: str | None, utc_seconds: float, offset_seconds: int) -> bool:
    """Whether a device with these quiet hours is left alone at a moment.

    Args:
        text: As `parse_quiet_hours` reads it; None: never.
        utc_seconds: The moment.
        offset_seconds: The device's local time minus UTC.
    """
    if text is None:
        return False
    now = (utc_seconds + offset_seconds) % _DAY_SECONDS
    return any(
        start <= now < end if start < end else now >= start or now < end
        for start, end in parse_quiet_hours(text)
    )
