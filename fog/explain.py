"""`e2llm plan --fog FILE`: the plan that a fog would get, and why, without starting it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fog.output import write_json
from fog.planned_fog import PlannedFog, origin_lines
from fog.tables import plan_view

if TYPE_CHECKING:
    from planner.whatif.places import Place


def run_explain(
    fog: PlannedFog, json_target: str | None, console: Console, *, is_explained: bool = True
) -> None:
    """Plan and show; ``is_explained`` adds why each device got its place or none.

    Raises:
        ConfigError: A device cannot be known.
        InfeasiblePlanError: The model does not fit on the devices.
    """
    from planner.whatif.places import explain, single_text

    with console.status("") as status:
        status.update("Measuring this machine, or reading what was measured ...")
        devices = fog.specs(fog.config.devices)
        status.update(f"Planning for {len(devices)} devices ...")
        plan = fog.problem.plan(devices)
    entry: dict[str, Any] = {"plan": msgspec.to_builtins(plan)}
    for line in origin_lines(fog.config.devices):
        console.print(line, highlight=False)
    console.print()
    console.print(plan_view(entry["plan"]))
    if is_explained:
        places = []
        with console.status("") as status:
            found = explain(fog.problem, devices, plan)
            for number, device in enumerate(devices, start=1):
                status.update(f"Planning without {device.id}, {number} of {len(devices)} ...")
                places.append(next(found))
        single = single_text(fog.problem, devices, plan)
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
