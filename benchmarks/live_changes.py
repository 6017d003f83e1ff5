"""Parts of `benchmarks.live` in which the plan changes, or must not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from benchmarks.live_fog import (
    LOOK_SECONDS,
    ON_THE_WAY,
    LiveFog,
    Plan,
    devices_of,
    is_settled,
    live_fog,
    text_of,
)
from benchmarks.live_load import MeasuredLoad, Window
from benchmarks.live_parts import Found, Lab, default_fog, device_of
from broker.conditions import Condition
from fog.config import FogConfig
from fog.quantities import parse_memory
from tests.planner.live.noise import decisions_under_noise, steady_fog

SLOWED: Final = "jetson-orin"
"""The fastest device, so that its speed matters most."""
TIMES: Final = 4.0
COMING: Final = ("jetson-orin", "pi5-kitchen")
DRAINED: Final = "mini-pc"
ROOMY: Final = "51 %"
SHORT_CONTEXT: Final = 256
"""With it no device holds the model alone, and each has room for what two plans give it."""
CALM_SECONDS: Final = 12.0
PATIENCE_SECONDS: Final = 60.0
WINDOW_SECONDS: Final = 20.0
AFTER_SECONDS: Final = 10.0
NEAR: Final = 0.9
NOISY_SEEDS: Final = 10
NOISY_SECONDS: Final = 1800.0


def noise(lab: Lab) -> Found:
    """Readings that are off by up to 15 %, for half an hour of simulated time each."""
    found = Found()
    decisions = [
        decision
        for seed in range(NOISY_SEEDS)
        for decision in decisions_under_noise(steady_fog(), random.Random(seed), NOISY_SECONDS)
    ]
    found.figures["simulated_minutes"] = NOISY_SEEDS * NOISY_SECONDS / 60
    found.at_most("decisions of the planner", len(decisions), 0)
    return found


def slow(lab: Lab) -> Found:
    """A device that becomes four times slower, and then as fast as before."""
    found = Found()
    config = default_fog()
    with live_fog(lab.folder, config) as fog, MeasuredLoad(fog.url, lab.jobs(fog)) as load:
        before = _steady(fog, load, found)
        fog.suffer(SLOWED, Condition(slowdown=TIMES))
        found.figures |= _until_planned(fog, "slower", lambda speed: speed < 2 / TIMES)
        after = _steady(fog, load, found)
        fog.suffer(SLOWED, Condition())
        back = _until_planned(fog, "faster", lambda speed: speed > 1 / 2)
        found.figures |= {f"back_{name}": seconds for name, seconds in back.items()}
        again = _steady(fog, load, found)
        is_used = SLOWED in devices_of(fog.client.plan())
        found.processes(fog)
    slowed = device_of(config, SLOWED)
    slowed = replace(slowed, slowdown=TIMES * slowed.slowdown)
    fresh = _fresh(lab, default_fog(slowed), found)
    rates = {name: load.tokens_per_second(w) for name, w in
             (("before", before), ("slowed", after), ("again", again))}  # fmt: skip
    _note_rates(found, {**rates, "fresh_slowed": fresh})
    found.figures["longest_gap_seconds"] = round(load.longest_gap(Window(before.end, again.end)), 2)
    found.answers(load.findings())
    found.at_most("seconds until switched", found.figures["switched_seconds"], 15)
    found.at_least("rate to that of a fresh start", rates["slowed"] / fresh, NEAR)
    found.at_least("at full speed it is used again", is_used, 1)
    found.at_least("rate at full speed to that before", rates["again"] / rates["before"], NEAR)
    return found


def switch(lab: Lab) -> Found:
    """Planned changes where memory holds old and new layers: a device drained, and back."""
    found = Found()
    config = default_fog(context_tokens=str(SHORT_CONTEXT))
    memory = parse_memory(ROOMY)
    devices = tuple(replace(device, model_memory=memory) for device in config.devices)
    config = replace(config, devices=devices)
    with live_fog(lab.folder, config) as fog, MeasuredLoad(fog.url, lab.jobs(fog)) as load:
        fog.settle(CALM_SECONDS, PATIENCE_SECONDS)
        found.figures["plans"] = [text_of(fog.client.plan())]
        usual = load.window(AFTER_SECONDS)
        windows = []
        for verb, is_wanted in (("drain", False), ("uncordon", True)):
            begin = time.monotonic()
            fog.client.place_device(DRAINED, verb)

            def is_done(plan: Plan, *, is_wanted: bool = is_wanted) -> bool:
                return is_settled(plan) and (DRAINED in devices_of(plan)) == is_wanted

            found.figures[f"{verb}_seconds"] = round(fog.wait(verb, is_done, PATIENCE_SECONDS), 2)
            found.figures["plans"].append(text_of(fog.client.plan()))
            time.sleep(AFTER_SECONDS)
            windows.append(Window(begin, time.monotonic()))
        rolling = [trigger for trigger in fog.triggers if ON_THE_WAY in trigger]
        found.processes(fog)
    gaps = [load.longest_gap(window) for window in (usual, *windows)]
    for name, gap in zip(("usual", "drain", "uncordon"), gaps, strict=True):
        found.figures[f"longest_gap_{name}_seconds"] = round(gap, 3)
    found.answers(load.findings())
    found.at_most("changes for which memory had no room", len(rolling), 0)
    found.at_most("longest gap between two tokens", max(gaps[1:]), 1.0)
    return found


def grow(lab: Lab) -> Found:
    """Two devices join a loaded fog, and leave it."""
    found = Found()
    config = default_fog()
    with (
        live_fog(lab.folder, config, later=COMING) as fog,
        MeasuredLoad(fog.url, lab.jobs(fog)) as load,
    ):
        four = _steady(fog, load, found)
        fog.start(*COMING)
        joined = fog.wait("both are used", lambda p: is_settled(p) and devices_of(p) >= {*COMING},
                          PATIENCE_SECONDS)  # fmt: skip
        six = _steady(fog, load, found)
        fog.leave(*COMING)
        left = fog.wait("none is used", lambda p: is_settled(p) and not devices_of(p) & {*COMING},
                        PATIENCE_SECONDS)  # fmt: skip
        after = _steady(fog, load, found)
        found.processes(fog)
    fresh = _fresh(lab, config, found)
    found.figures |= {"joined_seconds": round(joined, 2), "left_seconds": round(left, 2)}
    rates = {name: load.tokens_per_second(w) for name, w in
             (("four", four), ("six", six), ("four_again", after))}  # fmt: skip
    _note_rates(found, {**rates, "fresh_six": fresh})
    found.answers(load.findings())
    found.at_least("rate of six to that of a fresh start", rates["six"] / fresh, NEAR)
    return found


def _steady(fog: LiveFog, load: MeasuredLoad, found: Found) -> Window:
    """Wait until the plan stays the same, and return a while after that."""
    fog.settle(CALM_SECONDS, PATIENCE_SECONDS)
    found.figures.setdefault("plans", []).append(text_of(fog.client.plan()))
    return load.window(WINDOW_SECONDS)


def _fresh(lab: Lab, config: FogConfig, found: Found) -> float:
    """Return the rate of a fog that was started as it is."""
    with live_fog(lab.folder, config) as fog, MeasuredLoad(fog.url, lab.jobs(fog)) as load:
        window = _steady(fog, load, found)
    return load.tokens_per_second(window)


def _until_planned(fog: LiveFog, change: str, is_so: Callable[[float], bool]) -> dict[str, float]:
    """Return after how long a plan for a device's new speed was made, and served."""
    began = time.time()
    switched = fog.wait(
        f"a plan has {SLOWED} {change}",
        lambda plan: is_settled(plan) and is_so(plan["speeds"].get(SLOWED, 1.0)),
        PATIENCE_SECONDS,
    )
    # The decision is told behind the plan.
    while not (planned := _decisions(fog, began, change)):
        time.sleep(LOOK_SECONDS)
    return {
        "planned_seconds": round(planned[0] - began, 2),
        "switched_seconds": round(switched, 2),
    }


def _decisions(fog: LiveFog, since: float, change: str) -> list[float]:
    """Return when plans were made because of a change, in UTC seconds."""
    return [
        entry["at"]
        for entry in fog.client.plan_history()
        if entry["at"] > since and change in entry["trigger"]
    ]


def _note_rates(found: Found, rates: dict[str, float]) -> None:
    found.figures["tokens_per_second"] = {name: round(rate, 1) for name, rate in rates.items()}
