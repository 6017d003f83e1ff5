"""The planner's decisions for a terminal. From the gateway's JSON to rich; no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from fog.quantities import format_seconds

Json = Mapping[str, Any]

_OUTCOMES: Final = {"adopted": "green", "kept": "cyan", "none": "yellow"}
_NAMES: Final = {"running": "as it is", "best": "best found"}


def history_view(decisions: Sequence[Json]) -> RenderableType:
    """Return a paragraph for each decision, the latest last."""
    if not decisions:
        return Text("No decision yet.")
    return Group(*[_decision(entry) for entry in decisions])


def _decision(entry: Json) -> Text:
    outcome = str(entry.get("outcome") or "none")
    version = entry.get("version")
    text = Text(_time(entry.get("at")), "dim")
    text.append(f"  {outcome}", _OUTCOMES.get(outcome, ""))
    if version is not None:
        text.append(f"  plan {version}", "bold")
    for label, key in (("what changed: ", "trigger"), ("why: ", "reason")):
        if value := entry.get(key):
            text.append(f"\n    {label}", "dim")
            text.append(str(value))
    for plan in entry.get("considered") or ():
        text.append(f"\n    {_NAMES.get(plan.get('name'), plan.get('name'))}: ", "dim")
        text.append(_considered(plan))
    return text.append("\n")


def _considered(plan: Json) -> str:
    parts = [
        f"{plan.get('num_replicas', '?')} replicas on {plan.get('num_devices', '?')} devices",
        f"{plan.get('requests_per_second', 0.0):.3g} requests/s",
        f"{format_seconds(plan.get('objective_seconds', 0.0))} per request with what loading costs",
    ]
    if optimality := plan.get("optimality"):
        parts.append(str(optimality))
    return ", ".join(parts)


def _time(at: object) -> str:
    if not isinstance(at, int | float) or at <= 0:
        return "-"
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
