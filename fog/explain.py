"""`e2llm plan --fog FILE`: the plan that a fog would get, and why, without starting it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker.plan import Plan
from fog.changes import Changes
from fog.output import write_json
from fog.simulate import Problem
from fog.tables import plan_view, rates_text
from planner.model import InfeasiblePlanError


@dataclass(frozen=True, slots=True)
class Place:
    """Why a device is where it is.

    Attributes:
        without: What the fog would serve without it, or why it could not.
    """

    device: str
    reason: str
    without: str


def run_explain(
    problem: Problem,
    json_target: str | None,
    console: Console,
    *,
    is_explained: bool = True,
    seed: int = 0,
) -> None:
    """Plan and show; ``is_explained`` adds why each device got its place or none.

    Raises:
        ConfigError: A device cannot be known.
        InfeasiblePlanError: The model does not fit on the devices.
    """
    devices = problem.specs(Changes())
    plan = problem.plan(devices, seed)
    entry: dict[str, Any] = {"plan": msgspec.to_builtins(plan)}
    console.print(plan_view(entry["plan"]))
    if is_explained:
        places = explain(problem, plan, seed)
        single = single_text(plan)
        console.print(_places_table(places))
        console.print(Text(single, "bold"))
        entry["devices"] = [
            {"device": p.device, "reason": p.reason, "without": p.without} for p in places
        ]
        entry["best_single_device"] = single
    write_json(json_target, entry)


def explain(problem: Problem, plan: Plan, seed: int = 0) -> list[Place]:
    """Return a place for every device, and what its absence would change."""
    devices = problem.specs(Changes())
    rate = plan.predicted.requests_per_second or 0.0
    places = []
    for device in devices:
        reason = plan.reasons.get(device.id, "")
        if reason.startswith("idle"):
            without = "nothing: it is not used"
        else:
            without = _without(problem, [d for d in devices if d is not device], rate, seed)
        places.append(Place(device.id, reason, without))
    return places


def _without(problem: Problem, left: list[Any], rate: float, seed: int) -> str:
    if not left:
        return "no fog is left"
    try:
        other = problem.plan(left, seed).predicted.requests_per_second or 0.0
    except InfeasiblePlanError as error:
        return f"no plan: {error}"
    return f"{other:.3g} requests/s ({other / rate - 1:+.0%})"


def single_text(plan: Plan) -> str:
    """Return the plan compared with the best single device."""
    single = plan.best_single_device
    if single is None:
        return "No single device holds the whole model, so there is none to compare with."
    rate = plan.predicted.requests_per_second or 0.0
    alone = single.predicted.requests_per_second or 0.0
    rates = rates_text(msgspec.to_builtins(single.predicted))
    used = {stage.device for replica in plan.replicas for stage in replica.stages}
    if used == {single.device}:
        return (
            f"The plan is the best single device, {single.device}: no group of devices is faster."
        )
    return (
        f"The fog serves {rate / alone:.2f} times the requests of its best single device, "
        f"{single.device} ({rates})."
    )


def _places_table(places: list[Place]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for column in ("device", "why", "without it"):
        table.add_column(column)
    for place in places:
        table.add_row(Text(place.device), Text(place.reason), Text(place.without))
    return table
