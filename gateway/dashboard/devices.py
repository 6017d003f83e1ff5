"""The page of devices: one with its plots and its owner's rules, and a table of all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Final

from nicegui import ui

from gateway.dashboard import svg
from gateway.dashboard.elements import Facts, facts, fitted, table_html
from gateway.dashboard.history import NUM_SAMPLES, QUANTITIES, SAMPLE_SECONDS, History
from gateway.dashboard.plot import plot
from gateway.dashboard.view import View
from gateway.dashboard.words import (
    NONE,
    celsius,
    counted,
    device_address,
    figure,
    mebibytes,
    percent,
    seconds,
    whole_seconds,
)
from gateway.owners import VERBS, UnknownDeviceError, placed
from gateway.requests import NotReadyError

Json = Mapping[str, Any]

SPANS: Final = (300.0, 900.0, NUM_SAMPLES * SAMPLE_SECONDS)
"""Of plots, in seconds: as long as what is known needs."""


def build(view: View) -> None:
    """Put the page into the frame: of the device in the query, or of the first one."""
    sources = view.sources
    asked = ui.context.client.request.query_params.get("device")
    chosen = asked or next((device["id"] for device in sources.devices()), None)
    if chosen is not None:
        _one(view, chosen)
    ui.html("All devices", sanitize=False, tag="h2")
    table = ui.html("", sanitize=False).classes("scrolls")
    view.follow(lambda: devices_table(sources.devices(), sources.plan(), chosen), table.set_content)


def _one(view: View, chosen: str) -> None:
    sources = view.sources

    def read() -> Json | None:
        return next((device for device in sources.devices() if device["id"] == chosen), None)

    ui.html(escape(chosen), sanitize=False, tag="h2")
    facts(view, lambda: device_facts(read()))
    if view.caller.is_admin:
        _verbs(view, chosen)
    fitted(view, lambda width: plots(view.sources.history, chosen, time.time(), width))


def _verbs(view: View, chosen: str) -> None:
    """Offer what ``POST /fog/devices/{id}/{verb}`` does."""

    def ask(verb: str) -> None:
        try:
            view.sources.engine.ask_of_device(
                chosen, lambda known: placed(known, verb, time.time())
            )
        except (UnknownDeviceError, NotReadyError) as error:
            ui.notify(str(error), type="negative")
        else:
            ui.notify(f"The planner is asked to {verb} {chosen}.")

    with ui.element("div").classes("verbs"):
        for verb in VERBS:
            button = ui.button(verb.capitalize(), on_click=partial(ask, verb), color=None)
            button.props("outline dense no-caps")


# --- what is shown: pure -------------------------------------------------------------------------


def device_facts(device: Json | None) -> Facts:
    """Return what stands above the plots of a device, its owner's rules among it.

    Args:
        device: As ``GET /fog/devices`` has it; None: no device of that name is known.
    """
    if device is None:
        return (("State", "unknown here"),)
    telemetry = device["telemetry"] or {}
    latency = telemetry.get("link_latency_seconds")
    known = [
        ("State", device["state"]),
        ("Heard", f"{whole_seconds(device['last_seen_seconds'])} ago"),
        ("Holds", f"{counted(len(device['stages']), 'stage')}, {device['load_state'] or NONE}"),
        ("Offered to models", mebibytes(device["memory_bytes"])),
        ("Hardware", device["hardware"] or NONE),
        ("Threads", figure(device["threads"])),
        ("Slowed down", f"{figure(device['slowdown'])} times" if device["slowdown"] else NONE),
        ("Link", NONE if latency is None else f"{seconds(latency)} to the broker"),
        ("Software", device["software"] or NONE),
        ("Placement", device["placement"]),
        ("Owner allows", owner_text(device["owner"])),
    ]
    if device["error"]:
        known.append(("Cannot load", device["error"]))
    return tuple(known)


def owner_text(rules: Json | None) -> str:
    """Return in words what an owner allows."""
    if rules is None:
        return NONE
    said = [f"{percent(rules['share'])} of the device", " and ".join(rules["phases"])]
    if rules["quiet_hours"]:
        said.append(f"quiet {rules['quiet_hours']}")
    if not rules["text"]:
        said.append("no text")
    if rules["layers"]:
        start, end = rules["layers"]
        said.append(f"layers {start}–{end - 1} only")
    return ", ".join(said)


def plots(history: History, device: str, now: float, width: int) -> str:
    """Return the plots of a device: side by side where the window is wide.

    Args:
        history: Of all devices.
        device: Its id.
        now: UTC seconds.
        width: Of the window, in pixels.
    """
    found = [history.points(device, quantity.field) for quantity in QUANTITIES]
    each = width if width < 700 else width // 2 - 10
    # To the sample, so that a plot changes when there is something new in it.
    end = (now // SAMPLE_SECONDS + 1) * SAMPLE_SECONDS
    begin = min((known[0].at for known in found if known), default=end)
    span = next((span for span in SPANS if end - begin <= span), SPANS[-1])
    drawn = (
        plot(
            quantity.title,
            quantity.unit,
            [point._replace(value=point.value * quantity.factor) for point in known],
            now=end,
            span_seconds=span,
            gap_seconds=4 * SAMPLE_SECONDS,
            width=each,
        )
        for quantity, known in zip(QUANTITIES, found, strict=True)
    )
    return svg.tag("div", *drawn, class_="plots")


def devices_table(devices: Sequence[Json], plan: Json, chosen: str | None = None) -> str:
    """Return a row for each device, with a link to its plots."""
    held: dict[str, list[str]] = {}
    for part in (plan, *plan["others"]):
        for replica in part["replicas"]:
            for stage in replica["stages"]:
                held.setdefault(stage["device"], []).append(replica["role"])
    rows = []
    for device in devices:
        name = device["id"]
        # Of a device that is away, the last of these would look like now.
        telemetry = (device["telemetry"] or {}) if device["state"] == "ready" else {}
        current = "true" if name == chosen else None
        state = svg.tag("span", escape(device["state"]), class_=f"state is-{device['state']}")
        rows.append(
            [
                svg.tag("a", escape(name), href=device_address(name), aria_current=current),
                state if device["placement"] == "open" else f"{state}, {device['placement']}",
                ", ".join(held.get(name, ["idle"])),
                percent(telemetry.get("cpu_load_ratio")),
                figure(telemetry.get("queue_length")),
                figure(telemetry.get("tokens_per_second")),
                mebibytes(telemetry.get("memory_used_bytes")),
                celsius(telemetry.get("temperature_celsius")),
            ]
        )
    head = ("Device", "State", "Role", "Load", "Queue", "Tokens/s", "Memory", "Temperature")
    return table_html(head, rows, counted(len(rows), "device"))
