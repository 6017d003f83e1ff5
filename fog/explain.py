"""`e2llm plan --fog FILE`: the plan that a fog would get, and why, without starting it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fog.changes import Changes
from fog.output import write_json
from fog.simulate import FogFile
from fog.tables import plan_view

if TYPE_CHECKING:
    from planner.whatif.places import Place


def run_explain(
    fog: FogFile, json_target: str | None, console: Console, *, is_explained: bool = True
) -> None:
    """Plan and show; ``is_explained`` adds why each device got its place or none.

    Raises:
        ConfigError: A device cannot be known.
        InfeasiblePlanError: The model does not fit on the devices.
    """
    from planner.whatif.places import explain, single_text

    devices = fog.devices(Changes())
    plan = fog.problem.plan(devices)
    entry: dict[str, Any] = {"plan": msgspec.to_builtins(plan)}
    console.print(plan_view(entry["plan"]))
    if is_explained:
        places = explain(fog.problem, devices, plan)
        single = single_text(plan)
        console.print(_places_table(places))
        console.print(Text(single, "bold"))
        entry["devices"] = [asdict(place) for place in places]
        entry["best_single_device"] = single
    write_json(json_target, entry)


def _places_table(places: list[Place]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for column in ("device", "why", "without it"):
        table.add_column(column)
    for place in places:
        table.add_row(Text(place.device), Text(place.reason), Text(place.without))
    return table
