"""One replica as a panel: its stages as boxes, with layers, live figures and links. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.dashboard import svg
from gateway.dashboard.layout import Place, Size, flow
from gateway.dashboard.svg import Drawing
from gateway.dashboard.words import device_address, figure, percent

Json = Mapping[str, Any]

BOX: Final = Size(152.0, 78.0)
BOX_GAP: Final = Size(16.0, 18.0)
PAD: Final = 14.0
HEAD: Final = 46.0


def replica_panel(
    replica: Json, measured: Json, known: Mapping[str, Json], width: float
) -> Drawing:
    """Return one replica.

    Args:
        replica: As ``GET /fog/plan`` has it.
        measured: What that says of measurements.
        known: What ``GET /fog/devices`` says, by device.
        width: That there is; stages go on in a new row beyond it.
    """
    stages, role = replica["stages"], replica["role"]
    placed = flow([BOX] * len(stages), width - 2 * PAD, BOX_GAP)
    size = Size(placed.width + 2 * PAD, HEAD + placed.height + PAD)
    boxes = [
        device_box(known.get(stage["device"]), stage, role).at(place.x, place.y)
        for stage, place in zip(stages, placed.places, strict=True)
    ]
    links = [
        _link(one, other) for one, other in zip(placed.places, placed.places[1:], strict=False)
    ]
    if role != "prefill" and len(stages) > 1:
        links.append(_ring(placed.places[0], placed.places[-1]))
    is_complete = replica["complete"]
    state = _rates(replica, measured, known) if is_complete else "incomplete"
    room = size.width - 2 * PAD
    head = svg.text(svg.cut(f"{role} {replica['id']}", room), PAD, 20.0, "name")
    head += svg.text(svg.cut(state, room), PAD, 37.0, "small" if is_complete else "wrong")
    inside = svg.tag("g", *links, *boxes, transform=f"translate({PAD:g} {HEAD:g})")
    frame = svg.tag("rect", x=0.5, y=0.5, width=size.width - 1, height=size.height - 1, rx=10)
    hint = svg.title(f"{replica['slots']} requests at once, {replica['kv_tokens']} tokens of KV")
    classes = f"replica {role}" if is_complete else f"replica {role} incomplete"
    return Drawing(size, svg.tag("g", hint, frame, head, inside, class_=classes))


def _rates(replica: Json, measured: Json, known: Mapping[str, Json]) -> str:
    """Return the measured rate of a replica beside the predicted one."""
    predicted = replica["predicted"]
    if replica["role"] == "prefill":
        found = (measured.get("replicas") or {}).get(replica["id"]) or {}
        rate, expected = (
            found.get("prefill_tokens_per_second"),
            predicted["prefill_tokens_per_second"],
        )
    else:
        last = known.get(replica["stages"][-1]["device"]) or {}
        rate = (last.get("telemetry") or {}).get("tokens_per_second")
        expected = predicted["decode_tokens_per_second"]
    if rate is None:
        return f"{figure(expected)} tokens/s predicted"
    return f"{figure(rate)} of {figure(expected)} tokens/s"


def device_box(device: Json | None, stage: Json | None, role: str, reason: str = "") -> Drawing:
    """Return one device: its name, layers, load, queue and tokens per second.

    Args:
        device: As ``GET /fog/devices`` has it; None: it never said anything.
        stage: That it holds; None: none, then there is a device.
        role: Of its replica, or idle.
        reason: Why it has no stage.
    """
    telemetry = (device or {}).get("telemetry") or {}
    state = "unknown" if device is None else device["state"]
    name = stage["device"] if stage is not None else (device or {})["id"]
    room = BOX.width - 20
    load = telemetry.get("cpu_load_ratio") if state == "ready" else None
    lines = [
        svg.text(svg.cut(name, room), 10.0, 19.0, "name"),
        svg.text(svg.cut(layers(stage) if stage else "idle", room), 10.0, 35.0),
        svg.text(svg.cut(_live(device, state, telemetry, load), room), 10.0, 51.0, "live"),
        svg.text(svg.cut(_pace(device, state, telemetry, stage, role), room), 10.0, 66.0, "live"),
    ]
    bar = [svg.tag("rect", x=10, y=71, width=room, height=3, rx=1.5, class_="track")]
    if load is not None:
        share = min(max(load, 0.0), 1.0)
        bar.append(svg.tag("rect", x=10, y=71, width=room * share, height=3, rx=1.5, class_="load"))
    hint = svg.title(", ".join(filter(None, [name, state, layers(stage) if stage else "", reason])))
    frame = svg.tag("rect", x=0.5, y=0.5, width=BOX.width - 1, height=BOX.height - 1, rx=7)
    classes = f"device {role} is-{state}"
    box = svg.tag("g", hint, frame, *lines, *bar, class_=classes, data_device=name)
    return Drawing(BOX, svg.tag("a", box, href=device_address(name)) if device else box)


def _live(device: Json | None, state: str, telemetry: Json, load: float | None) -> str:
    if state != "ready" or device is None:
        return state
    doing, progress = device["load_state"], device["progress"]
    if doing in ("loading", "measuring"):
        return f"{doing}" if progress is None else f"{doing} {percent(progress)}"
    if doing == "failed":
        return "cannot load"
    said = "load –" if load is None else f"load {percent(load)}"
    queue = telemetry.get("queue_length")
    return said if queue is None else f"{said}, queue {queue}"


def _pace(device: Json | None, state: str, telemetry: Json, stage: Json | None, role: str) -> str:
    placement = (device or {}).get("placement", "open")
    words = [] if placement == "open" else [placement]
    rate = telemetry.get("tokens_per_second")
    # Telemetry counts rows of decode steps, of which prefill has none.
    if state == "ready" and stage is not None and rate is not None and role != "prefill":
        words.append(f"{figure(rate)} tokens/s")
    return ", ".join(words)


# --- lines ---------------------------------------------------------------------------------------

ARROW: Final = svg.tag(
    "defs",
    svg.tag(
        "marker",
        svg.tag("path", d="M0 0L8 4L0 8z", class_="arrowhead"),
        id="fog-arrow",
        viewBox="0 0 8 8",
        refX=7,
        refY=4,
        markerUnits="userSpaceOnUse",
        markerWidth=9,
        markerHeight=9,
        orient="auto",
    ),
)


def line(points: Sequence[Place], kind: str) -> str:
    """Return an arrow along points; ``kind`` is its class."""
    path = "L".join(f"{svg.number(point.x)} {svg.number(point.y)}" for point in points)
    return svg.tag("path", d=f"M{path}", class_=f"link {kind}", marker_end="url(#fog-arrow)")


def _link(one: Place, other: Place) -> str:
    """Return the way from a stage to the next: straight, or round the end of a row."""
    if one.y == other.y:
        y = one.y + BOX.height / 2
        return line([Place(one.x + BOX.width, y), Place(other.x, y)], "hop")
    middle = one.y + BOX.height + BOX_GAP.height / 2
    begin, end = one.x + BOX.width / 2, other.x + BOX.width / 2
    points = [
        Place(begin, one.y + BOX.height),
        Place(begin, middle),
        Place(end, middle),
        Place(end, other.y),
    ]
    return line(points, "hop")


def _ring(first: Place, last: Place) -> str:
    """Return the way of a token back to the first stage."""
    below, left = last.y + BOX.height + PAD / 2, -PAD / 2
    y = first.y + BOX.height / 2
    begin = last.x + BOX.width / 2
    points = [
        Place(begin, last.y + BOX.height),
        Place(begin, below),
        Place(left, below),
        Place(left, y),
        Place(first.x, y),
    ]
    return line(points, "ring")


def layers(stage: Json) -> str:
    """Return the layers of a stage, the last one included."""
    start, end = stage["layers"]
    return f"layer {start}" if end - start == 1 else f"layers {start}–{end - 1}"
