"""The page of plans: what the planner decided and why, and predictions beside measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from nicegui import ui

from gateway.dashboard import svg
from gateway.dashboard.elements import Facts, facts, table_html
from gateway.dashboard.view import View
from gateway.dashboard.words import NONE, counted, figure, seconds, signed_percent

Json = Mapping[str, Any]

MOST_STAGES: Final = 20
"""Rows of stages that are shown: those that are farthest off."""
RATES: Final[tuple[tuple[str, str, Callable[[float | None], str]], ...]] = (
    ("ttft_seconds", "Time to the first token", seconds),
    ("tpot_seconds", "Time per token", seconds),
    ("requests_per_second", "Requests per second", figure),
    ("prefill_tokens_per_second", "Tokens of prompts per second", figure),
    ("decode_tokens_per_second", "Tokens of answers per second", figure),
)


def build(view: View) -> None:
    """Put the page into the frame."""
    sources = view.sources
    facts(view, lambda: plan_facts(sources.plan()))
    parts = (
        ("Predicted beside measured", lambda: rates_table(sources.plan())),
        ("Stages", lambda: stages_table(sources.plan())),
        ("What the planner decided", lambda: decisions_table(sources.engine.plan_history())),
    )
    for heading, read in parts:
        ui.html(heading, sanitize=False, tag="h2")
        view.follow(read, ui.html("", sanitize=False).classes("scrolls").set_content)


# --- what is shown: pure -------------------------------------------------------------------------


def plan_facts(plan: Json) -> Facts:
    """Return what is said of the plan as a whole.

    Args:
        plan: The body of ``GET /fog/plan``.
    """
    best = plan["best_single_device"]
    alone = "no device can hold the model alone"
    if best is not None:
        rate = best["predicted"].get("decode_tokens_per_second")
        alone = f"{best['device']}, {figure(rate)} tokens/s"
    return (
        ("Version", NONE if plan["version"] is None else str(plan["version"])),
        ("State", plan["state"]),
        ("Optimality", plan["optimality"] or NONE),
        ("Made because", plan["trigger"] or NONE),
        ("Best device alone", alone if plan["version"] is not None else NONE),
    )


def rates_table(plan: Json) -> str:
    """Return each rate as predicted and as measured, and by how much it is off."""
    predicted, measured, errors = plan["predicted"], plan["measured"], plan["errors"]
    rows = [
        [
            escape(title),
            say(predicted.get(name)),
            say(measured.get(name)),
            signed_percent(errors.get(name)),
        ]
        for name, title, say in RATES
    ]
    caption = (
        "Errors compare equal prompts and loads, so they are not those of the two columns. Rates "
        "of requests are compared while requests wait."
    )
    return table_html(("", "Predicted", "Measured", "Error"), rows, caption)


def stages_table(plan: Json) -> str:
    """Return the stages whose times are farthest off, each phase that was measured."""
    found = [
        (abs(times["error"]), replica, stage, phase, times)
        for part in (plan, *plan["others"])
        for replica in part["replicas"]
        for stage in replica["stages"]
        for phase, times in stage["measured"].items()
        if times is not None and times["error"] is not None
    ]
    found.sort(key=lambda row: row[0], reverse=True)
    rows = [
        [
            escape(stage["device"]),
            escape(replica["id"]),
            phase,
            seconds(times["predicted_seconds"]),
            seconds(times["measured_seconds"]),
            signed_percent(times["error"]),
        ]
        for _, replica, stage, phase, times in found[:MOST_STAGES]
    ]
    if not found:
        return svg.tag("p", "No stage of this plan has been measured yet.")
    caption = (
        f"{counted(len(found), 'stage')} measured; decode is of a step, prefill of a token. "
        "Prefill is predicted for prompts as long as the plan expects; tokens of shorter ones take "
        "longer."
    )
    head = ("Device", "Replica", "Phase", "Predicted", "Measured", "Error")
    return table_html(head, rows, caption)


def decisions_table(decisions: Sequence[Json]) -> str:
    """Return what was decided, the newest first.

    Args:
        decisions: The body of ``GET /fog/plans``.
    """
    rows = [
        [
            _time(each["at"]),
            NONE if each["version"] is None else str(each["version"]),
            escape(each["outcome"]),
            escape(each["trigger"] or NONE),
            escape(each["reason"]),
            "<br>".join(_considered(plan) for plan in each["considered"]) or NONE,
        ]
        for each in reversed(decisions)
    ]
    head = ("When (UTC)", "Plan", "Outcome", "What had changed", "Why", "Compared")
    return table_html(head, rows, counted(len(rows), "decision"))


def _considered(plan: Json) -> str:
    devices = counted(plan["num_devices"], "device")
    rate = f"{figure(plan['requests_per_second'])} requests/s"
    return f"{escape(plan['name'])}: {devices}, {rate}, {seconds(plan['objective_seconds'])} each"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
