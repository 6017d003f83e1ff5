"""Figures as a person reads them. Pure."""

from __future__ import annotations

from urllib.parse import quote

NONE = "–"
"""What stands where nothing is known."""


def counted(count: int, noun: str) -> str:
    """Return a number of things."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def sentence(text: str) -> str:
    """Return a text with a large letter at its beginning; the others stay as they are."""
    return text[:1].upper() + text[1:]


def figure(value: float | None) -> str:
    """Return the first three digits of a rate."""
    if value is None:
        return NONE
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """Return a duration in the unit in which it is short."""
    if value is None:
        return NONE
    if value < 0.9995:
        return f"{figure(1000 * value)} ms"
    return f"{figure(value)} s" if value < 120 else f"{value / 60:.0f} min"


def whole_seconds(value: float) -> str:
    """Return a duration of which fractions say nothing."""
    return seconds(float(round(value))) if value >= 0.5 else "0 s"


def celsius(value: float | None) -> str:
    """Return a temperature."""
    return NONE if value is None else f"{value:.0f} °C"


def percent(value: float | None) -> str:
    """Return a share."""
    return NONE if value is None else f"{100 * value:.0f} %"


def signed_percent(value: float | None) -> str:
    """Return by what share something is more, or less."""
    return NONE if value is None else f"{100 * value:+.0f} %"


def mebibytes(value: float | None) -> str:
    """Return an amount of memory."""
    if value is None:
        return NONE
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def device_address(device: str) -> str:
    """Return where a device has its page, as seen from any other page."""
    return f"devices?device={quote(device, safe='')}"
