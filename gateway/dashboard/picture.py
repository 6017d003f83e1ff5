"""The fog as a picture: replicas with their stages, in SVG. Pure: from what the API says.

Prompts go from left to right (on a phone from top to bottom): prefill replicas hand their KV to
decode replicas. A colour is never alone: what it says stands there in words as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.dashboard import svg
from gateway.dashboard.layout import Place, Size, flow, shares
from gateway.dashboard.panels import (
    ARROW,
    BOX,
    BOX_GAP,
    HEAD,
    PAD,
    Json,
    device_box,
    layers,
    line,
    replica_panel,
)
from gateway.dashboard.svg import Drawing
from gateway.dashboard.words import counted, seconds

_GAP: Final = Size(14.0, 14.0)
_TITLE: Final = 26.0
_BETWEEN: Final = 80.0
_LEAST_COLUMN: Final = 2 * BOX.width + BOX_GAP.width + 2 * PAD
NARROW: Final = 2 * _LEAST_COLUMN + _BETWEEN
"""Below this width decode replicas stand under prefill replicas."""
_REGIONS: Final = {
    "prefill": "Prefill",
    "decode": "Decode",
    "both": "Prefill and decode",
}


def fog_picture(plan: Json, devices: Sequence[Json], width: int) -> str:
    """Return the whole picture as SVG.

    Args:
        plan: The body of ``GET /fog/plan``.
        devices: That of ``GET /fog/devices``.
        width: In pixels; the height follows.
    """
    known = {device["id"]: device for device in devices}
    parts = [
        _model(part["model"], part, plan["measured"], known, width)
        for part in (plan, *plan["others"])
        if part["replicas"]
    ]
    named = {stage["device"] for part in (plan, *plan["others"]) for stage in _stages(part)}
    idle = [device for device in devices if device["id"] not in named]
    if idle:
        parts.append(_idle(idle, plan["reasons"], width))
    stack, height = [], 0.0
    for part in parts:
        stack.append(part.at(0.0, height))
        height += part.size.height + _GAP.height
    return svg.picture(
        width,
        round(max(height - _GAP.height, 1.0)),
        "The fog",
        describe(plan, devices),
        ARROW,
        *stack,
        class_="fog-picture",
        role="group",
    )


def describe(plan: Json, devices: Sequence[Json]) -> str:
    """Return in words what the picture shows."""
    states = {device["id"]: device["state"] for device in devices}
    said = [
        f"{replica['role']} replica {replica['id']}: "
        + " to ".join(
            f"{stage['device']} ({layers(stage)}, {states.get(stage['device'], 'unknown')})"
            for stage in replica["stages"]
        )
        for part in (plan, *plan["others"])
        for replica in part["replicas"]
    ]
    return ". ".join(said or ["No plan yet"]) + "."


# --- regions -------------------------------------------------------------------------------------


def _model(
    name: str, part: Json, measured: Json, known: Mapping[str, Json], width: float
) -> Drawing:
    """Return all replicas of one model: prefill, then decode, then those for both."""
    by_role = {
        role: [replica for replica in part["replicas"] if replica["role"] == role]
        for role in _REGIONS
    }
    apart = [role for role in ("prefill", "decode") if by_role[role]]
    rows: list[Drawing] = []
    if len(apart) == 2:
        weights = [float(sum(len(r["stages"]) for r in by_role[role])) for role in apart]
        is_narrow = width < NARROW
        widths = [width] * 2 if is_narrow else shares(weights, width, _BETWEEN, _LEAST_COLUMN)
        sides = [
            _region(_REGIONS[role], by_role[role], measured, known, each)
            for role, each in zip(apart, widths, strict=True)
        ]
        rows.append(_handed_over(sides, part["predicted"], width, is_narrow=is_narrow))
    else:
        rows += [_region(_REGIONS[r], by_role[r], measured, known, width) for r in apart]
    if by_role["both"]:
        rows.append(_region(_REGIONS["both"], by_role["both"], measured, known, width))
    content, y = [], 0.0
    for row in rows:
        content.append(row.at(0.0, y))
        y += row.size.height + _GAP.height
    group = svg.tag("g", svg.title(name or "no model"), *content)
    return Drawing(Size(width, y - _GAP.height), group)


def _handed_over(
    sides: Sequence[Drawing], predicted: Json, width: float, *, is_narrow: bool
) -> Drawing:
    """Return prefill and decode with the way of the KV cache between them."""
    prefill, decode = sides
    took = predicted.get("kv_seconds")
    label = "KV" if took is None else f"KV {seconds(took)}"
    if is_narrow:
        y = prefill.size.height
        arrow = line([Place(24.0, y + 2), Place(24.0, y + 28)], "kv")
        words = svg.text(label, 34.0, y + 20, "small")
        height = y + 32 + decode.size.height
        content = prefill.at(0.0, 0.0) + arrow + words + decode.at(0.0, y + 32)
        return Drawing(Size(width, height), content)
    height = max(prefill.size.height, decode.size.height)
    y, first = _TITLE + HEAD, prefill.size.width
    arrow = line([Place(first + 4, y), Place(first + _BETWEEN - 4, y)], "kv")
    words = svg.text(label, first + _BETWEEN / 2, y - 8, "small", text_anchor="middle")
    content = prefill.at(0.0, 0.0) + arrow + words + decode.at(first + _BETWEEN, 0.0)
    return Drawing(Size(width, height), content)


def _region(
    name: str, replicas: Sequence[Json], measured: Json, known: Mapping[str, Json], width: float
) -> Drawing:
    panels = [replica_panel(replica, measured, known, width) for replica in replicas]
    return _titled(f"{name}: {counted(len(replicas), 'replica')}", panels, width)


def _idle(devices: Sequence[Json], reasons: Json, width: float) -> Drawing:
    boxes = [device_box(each, None, "idle", reasons.get(each["id"], "")) for each in devices]
    return _titled(f"Not in the plan: {counted(len(devices), 'device')}", boxes, width)


def _titled(heading: str, parts: Sequence[Drawing], width: float) -> Drawing:
    placed = flow([part.size for part in parts], width, _GAP)
    inside = (
        part.at(place.x, place.y + _TITLE) for part, place in zip(parts, placed.places, strict=True)
    )
    content = svg.text(heading, 0.0, 16.0, "heading") + "".join(inside)
    return Drawing(Size(max(placed.width, _LEAST_COLUMN), placed.height + _TITLE), content)


def _stages(part: Json) -> list[Json]:
    return [stage for replica in part["replicas"] for stage in replica["stages"]]
