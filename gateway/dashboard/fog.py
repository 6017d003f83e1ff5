"""The first page: the fog as a picture, with the figures of now beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from gateway.dashboard.elements import Facts, facts, fitted
from gateway.dashboard.picture import fog_picture
from gateway.dashboard.view import View
from gateway.dashboard.words import figure, seconds

Json = Mapping[str, Any]
Say = Callable[[float | None], str]


def build(view: View) -> None:
    """Put the page into the frame."""
    sources = view.sources

    def read_facts() -> Facts:
        return fog_facts(sources.plan(), sources.engine.readiness().details)

    facts(view, read_facts)
    fitted(view, lambda width: fog_picture(sources.plan(), sources.devices(), width))
    with ui.element("p").classes("hint"):
        ui.label(
            "Each box is a device with its layers; the bar is its load. Rates are those measured "
            "now, of those that the plan predicts for a full fog."
        )


def fog_facts(plan: Json, details: Json) -> Facts:
    """Return what stands above the picture: model, plan, queue, rates and latencies.

    Args:
        plan: The body of ``GET /fog/plan``.
        details: Those of ``GET /readyz``.
    """
    measured, predicted = plan["measured"], plan["predicted"]
    version = "none yet" if plan["version"] is None else f"{plan['version']}, {plan['state']}"
    coming = plan["preparing"]
    if coming is not None:
        progress = "" if coming["progress"] is None else f" ({coming['progress']:.0%})"
        version += f"; {coming['version']} is being loaded{progress}"
    states = details.get("devices", {}).items()
    running, waiting = details.get("running", 0), details.get("waiting", 0)
    return (
        ("Model", plan["model"] or "none yet"),
        ("Plan", version),
        ("Devices", ", ".join(f"{count} {state}" for state, count in states if count) or "none"),
        ("Requests", f"{running} running, {waiting} waiting"),
        ("Tokens/s", _pair(measured, predicted, "decode_tokens_per_second", figure)),
        ("First token", _pair(measured, predicted, "ttft_seconds", seconds)),
        ("Per token", _pair(measured, predicted, "tpot_seconds", seconds)),
    )


def _pair(measured: Json, predicted: Json, name: str, say: Say) -> str:
    known, expected = measured.get(name), predicted.get(name)
    return say(known) if expected is None else f"{say(known)} ({say(expected)} predicted)"
