"""What the planner would plan, as tables and a picture. Pure: from its answer to a page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import msgspec

from broker.plan import Plan, Rates
from broker.whatif import WhatIfAnswer
from gateway.dashboard.elements import Facts, table_html
from gateway.dashboard.picture import fog_picture
from gateway.dashboard.plans import RATES
from gateway.dashboard.words import (
    NONE,
    counted,
    mebibytes,
    seconds,
    signed_percent,
)


def answer_facts(answer: WhatIfAnswer) -> Facts:
    """Return what is said of the answer as a whole."""
    known = [("What would happen", _happens(answer)), ("Why", answer.reason)]
    if answer.plan is not None:
        known.append(("Optimality", answer.plan.optimality or NONE))
    if answer.by_data_sheet:
        known.append(("Times by data sheet, not measured", ", ".join(answer.by_data_sheet)))
    known.append(("Planned in", seconds(answer.seconds)))
    return tuple(known)


def _happens(answer: WhatIfAnswer) -> str:
    if answer.plan is None:
        return "the fog could not serve the model"
    if answer.keeps_replicas:
        return "the replicas would stay as they are"
    devices = {stage.device for replica in answer.plan.replicas for stage in replica.stages}
    replicas = counted(len(answer.plan.replicas), "replica")
    return f"{replicas} on {counted(len(devices), 'device')}"


def rates_table(before: Rates | None, after: Rates) -> str:
    """Return each predicted rate of the plan that serves, of the supposed one, and the change."""
    rows = []
    for name, title, say in (*RATES, ("kv_seconds", "KV transfer", seconds)):
        one, other = getattr(before, name, None), getattr(after, name)
        change = other / one - 1 if one and other is not None else None
        rows.append([escape(title), say(one), say(other), signed_percent(change)])
    head = ("", "Now", "Supposed", "Change")
    return table_html(head, rows, "Predicted by the planner, both for the requests of now.")


def moves_table(answer: WhatIfAnswer) -> str:
    """Return which weights devices would load before the plan could serve."""
    rows = [
        [escape(move.device), mebibytes(move.num_bytes), seconds(move.seconds)]
        for move in answer.moves
    ]
    caption = "Seconds over each device's own link at its full rate; the plan of now serves on."
    return table_html(("Device", "Would load", "For"), rows, caption)


def reasons_table(plan: Plan) -> str:
    """Return why each device would get its place, or none."""
    held: dict[str, list[str]] = {}
    for replica in plan.replicas:
        for stage in replica.stages:
            layers = f"layers {stage.layers.start}–{stage.layers.end - 1}"
            held.setdefault(stage.device, []).append(f"{replica.role.value}, {layers}")
    reasons = plan.reasons | {entry.device: entry.reason for entry in plan.idle}
    rows = [
        [escape(device), "; ".join(held.get(device, ["idle"])), escape(reasons.get(device, NONE))]
        for device in sorted(reasons.keys() | held.keys())
    ]
    return table_html(("Device", "Place", "Why"), rows, counted(len(rows), "device"))


def supposed_picture(plan: Plan, width: int) -> str:
    """Return the plan as it would look, without figures of now.

    Args:
        plan: Of the answer.
        width: In pixels.
    """
    body = plan_body(plan)
    names = plan.reasons.keys() | {entry.device for entry in plan.idle}
    devices = [_device(name) for name in sorted(names)]
    return fog_picture(body, devices, width)


def plan_body(plan: Plan) -> dict[str, Any]:
    """Return a plan that nobody carries out in the form of ``GET /fog/plan``."""
    body: dict[str, Any] = msgspec.to_builtins(plan)
    body["replicas"] = [{**replica, "complete": True} for replica in body["replicas"]]
    return {**body, "measured": {}, "others": []}


def _device(name: str) -> Mapping[str, Any]:
    return {
        "id": name,
        "state": "supposed",
        "telemetry": None,
        "load_state": None,
        "progress": None,
        "placement": "open",
    }
