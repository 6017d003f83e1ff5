"""Requests over time, one bar each: waiting, prefill, KV transfer, decode. Pure, in SVG.

What is drawn are figures, model and the name of the caller's key; never what was asked or
answered. Bars stand in the order of arrival, on one scale, so that they can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.dashboard import svg
from gateway.dashboard.words import counted, seconds

Json = Mapping[str, Any]

MOST_OPEN: Final = 50
MOST_ENDED: Final = 20
PHASES: Final = {
    "queue": "Waiting",
    "prefill": "Prefill",
    "kv_transfer": "KV transfer",
    "decode": "Decode",
}
"""The phases of `gateway.course`, and what people call them."""

_OPEN: Final = ("waiting", "answering")
_ROW: Final = 30.0
_BAR: Final = 10.0
_TEXT: Final = 12.0
_AXIS: Final = 18.0
_LEGEND: Final = 24.0
_RIGHT: Final = 132.0
"""Room for the figure at a row's end."""
_SPANS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_SHORTEST: Final = 1.0
"""Pixels of a stretch that took next to no time: it was there."""


def in_flight(entries: Iterable[Json], width: int) -> str:
    """Return the requests that are open, the oldest first; the right edge is now.

    Args:
        entries: The body of ``GET /fog/requests``.
        width: In pixels; the height follows.
    """
    found = sorted((each for each in entries if _is_open(each)), key=_began)
    if not found:
        return svg.tag("p", "No request is in flight.")
    shown = found[:MOST_OPEN]
    span = _span(each["seconds"] for each in shown)
    rows = [_row(each, span - each["seconds"], span, width) for each in shown]
    title = f"{counted(len(found), 'request')} in flight"
    more = f"and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    ticks = [(0.0, f"{seconds(span)} ago"), (1.0, "now")]
    return _chart(title, rows, ticks, width, more)


def ended(entries: Iterable[Json], width: int) -> str:
    """Return the latest requests that ended, the last one first; the left edge is their arrival.

    Arguments as of `in_flight`.
    """
    known = (each for each in entries if not _is_open(each) and each["phases"])
    shown = sorted(known, key=lambda each: -(_began(each) + each["seconds"]))[:MOST_ENDED]
    if not shown:
        return svg.tag("p", "No request has ended lately.")
    span = _span(each["seconds"] for each in shown)
    rows = [_row(each, 0.0, span, width) for each in shown]
    title = f"{counted(len(shown), 'request')} that ended last"
    return _chart(title, rows, [(0.0, "arrival"), (1.0, seconds(span))], width)


def _is_open(entry: Json) -> bool:
    return entry["state"] in _OPEN


def _began(entry: Json) -> float:
    return float(entry["began_at"])


def _span(durations: Iterable[float]) -> float:
    """Return a round time that holds the longest of these, or the most that is drawn."""
    longest = max(durations)
    return next((span for span in _SPANS if longest <= span), _SPANS[-1])


# --- rows ----------------------------------------------------------------------------------------


def _row(entry: Json, begins: float, span: float, width: int) -> tuple[str, str]:
    """Return a request as SVG, and in words.

    ``begins`` is its arrival on the scale of ``span`` seconds; before 0 the bar is cut off.
    """
    who = f"{entry['id'].rpartition('-')[2][:8]}, {entry['caller']}, {entry['model']}"
    figure = _figure(entry)
    words = f"{who}: {figure}; {_stretch_words(entry['phases'])}"
    bars = []
    for stretch in entry["phases"]:
        left = max(begins + stretch["begins_seconds"], 0.0) / span
        right = min(max(begins + stretch["begins_seconds"] + stretch["seconds"], 0.0) / span, 1.0)
        if right > left:
            length = max((right - left) * width, _SHORTEST)
            bars.append(
                svg.tag(
                    "rect",
                    svg.title(f"{PHASES[stretch['phase']]}: {seconds(stretch['seconds'])}"),
                    x=min(left * width, width - length),
                    y=_TEXT + 4,
                    width=length,
                    height=_BAR,
                    class_=stretch["phase"].replace("_", "-"),
                )
            )
    label = svg.text(svg.cut(who, width - _RIGHT), 0.0, _TEXT, "")
    end = svg.text(figure, float(width), _TEXT, "small", text_anchor="end")
    track = svg.tag("rect", x=0, y=_TEXT + 4, width=width, height=_BAR, class_="track")
    row = svg.tag("g", svg.title(f"{entry['id']}, {words}"), track, label, end, *bars)
    return row, words


def _figure(entry: Json) -> str:
    """Return what a request does now and since when, or how it ended and how long it took."""
    if _is_open(entry) and entry["phases"]:
        last = entry["phases"][-1]
        return f"{PHASES[last['phase']].lower()}, {seconds(last['seconds'])}"
    return f"{entry['state']}, {seconds(entry['seconds'])}"


def _stretch_words(phases: Sequence[Json]) -> str:
    return ", ".join(f"{PHASES[each['phase']]} {seconds(each['seconds'])}" for each in phases)


# --- the whole -----------------------------------------------------------------------------------


def _chart(
    title: str,
    rows: Sequence[tuple[str, str]],
    ticks: Sequence[tuple[float, str]],
    width: int,
    more: str = "",
) -> str:
    legend, legend_height = _legend(width)
    placed = [
        svg.tag("g", row, transform=f"translate(0 {svg.number(legend_height + index * _ROW)})")
        for index, (row, _) in enumerate(rows)
    ]
    bottom = legend_height + len(rows) * _ROW
    axis = list(_axis(ticks, bottom + _AXIS - 5, width))
    if more:
        axis.append(svg.text(more, width / 2, bottom + _AXIS - 5, "small", text_anchor="middle"))
    words = ". ".join([title, *(said for _, said in rows)])
    height = math.ceil(bottom + _AXIS)
    return svg.picture(width, height, title, words, legend, *placed, *axis, class_="timeline")


def _axis(ticks: Sequence[tuple[float, str]], y: float, width: int) -> Iterator[str]:
    for share, text in ticks:
        anchor = "start" if share == 0 else "end"
        yield svg.text(text, share * width, y, "small", text_anchor=anchor)


def _legend(width: int) -> tuple[str, float]:
    """Return the names of the colours, in as many lines as they need, and their height."""
    x, y, parts = 0.0, 0.0, []
    for phase, name in PHASES.items():
        needed = 16 + len(name) * svg.CHARACTER_PIXELS + 16
        if x and x + needed > width:
            x, y = 0.0, y + _LEGEND
        class_ = phase.replace("_", "-")
        parts.append(svg.tag("rect", x=x, y=y + 2, width=_BAR, height=_BAR, class_=class_))
        parts.append(svg.text(name, x + 16, y + 11, "small"))
        x += needed
    return "".join(parts), y + _LEGEND
