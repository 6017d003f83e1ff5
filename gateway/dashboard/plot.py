"""One quantity over time as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from gateway.dashboard import svg
from gateway.dashboard.history import Point
from gateway.dashboard.words import figure

Axis = Callable[[float], float]

HEIGHT: Final = 150.0
_LEFT: Final = 46.0
_RIGHT: Final = 12.0
_TOP: Final = 26.0
_BOTTOM: Final = 20.0


def plot(
    heading: str,
    unit: str,
    points: Sequence[Point],
    *,
    now: float,
    span_seconds: float,
    gap_seconds: float,
    width: int,
) -> str:
    """Return a line over the last ``span_seconds``, with its scale and its latest value.

    Args:
        heading: What is shown.
        unit: Of the values.
        points: Oldest first.
        now: The right edge, in the time of the points.
        span_seconds: From the left edge to the right one.
        gap_seconds: Points that are farther apart are not joined.
        width: In pixels.
    """
    shown = [point for point in points if point.at >= now - span_seconds]
    words = f"{figure(shown[-1].value)} {unit}" if shown else "not reported"
    lines = [
        svg.text(heading, 0.0, 14.0, "name"),
        svg.text(words, float(width) - _RIGHT, 14.0, text_anchor="end"),
    ]
    bottom = HEIGHT - _BOTTOM
    if shown:
        low, high, ticks = scale([point.value for point in shown])

        def y_of(value: float) -> float:
            return bottom - (value - low) / (high - low) * (bottom - _TOP)

        def x_of(at: float) -> float:
            return width - _RIGHT - (now - at) / span_seconds * (width - _LEFT - _RIGHT)

        for tick in ticks:
            y = y_of(tick)
            lines.append(svg.tag("path", d=f"M{_LEFT:g} {y:.1f}H{width - _RIGHT:g}", class_="grid"))
            lines.append(svg.text(figure(tick), _LEFT - 6, y + 4, "small", text_anchor="end"))
        lines += [
            svg.tag("path", d=_path(run, x_of, y_of), class_="curve")
            for run in runs(shown, gap_seconds)
        ]
    span = f"{span_seconds / 60:.0f} min ago"
    lines += [
        svg.text(span, _LEFT, HEIGHT - 5, "small"),
        svg.text("now", float(width) - _RIGHT, HEIGHT - 5, "small", text_anchor="end"),
    ]
    return svg.picture(
        width, HEIGHT, heading, _description(shown, unit), *lines, class_="plot", role="img"
    )


def scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Return the ends of an axis from 0, or below, that holds all values, and its round ticks."""
    low, high = min(0.0, *values), max(0.0, *values)
    step = _round_step((high - low or 1.0) / 3)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return first * step, last * step, [number * step for number in range(first, last + 1)]


def runs(points: Sequence[Point], gap_seconds: float) -> list[list[Point]]:
    """Return the points in pieces that are to be joined."""
    pieces: list[list[Point]] = []
    for point in points:
        if not pieces or point.at - pieces[-1][-1].at > gap_seconds:
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def _path(run: Sequence[Point], x_of: Axis, y_of: Axis) -> str:
    places = [f"{x_of(point.at):.1f} {y_of(point.value):.1f}" for point in run]
    # A lone point is a line of no length, which a round cap makes a dot.
    return f"M{'L'.join(places if len(places) > 1 else places * 2)}"


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _description(points: Sequence[Point], unit: str) -> str:
    if not points:
        return "Nothing was reported."
    values = [point.value for point in points]
    return (
        f"From {figure(min(values))} to {figure(max(values))} {unit}, "
        f"{figure(values[-1])} {unit} last."
    )
