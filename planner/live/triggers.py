"""What starts planning, and what a new plan must gain to be worth a move. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec.structs

from broker.plan import Plan
from planner.cost import device_cost
from planner.model import DeviceSpec, ModelSpec, Workload
from planner.planning import Outcome


def relative_speeds(
    plan: Plan,
    devices: Mapping[str, DeviceSpec],
    model: ModelSpec,
    workload: Workload,
    idle_speeds: Mapping[str, float],
) -> dict[str, float]:
    """Return each device's speed now over the speed that ``plan`` was made with.

    Read from the plan itself, so it holds after a restart of the planner: the predicted
    time of a device's decode step then, over that of now. Idle devices have no stage in a
    plan; theirs is the speed in ``idle_speeds``, 1 when that is unknown.
    """
    workload = workload.fitted_to(model.context_limit)
    ratios: dict[str, float] = {}
    for replica in plan.replicas:
        for stage in replica.stages:
            device = devices.get(stage.device)
            if device is None or not stage.decode_seconds:
                continue
            then = stage.decode_seconds[0].seconds
            cost = device_cost(device, model, workload, 1)
            now = cost.decode_table(stage.layers.start, stage.layers.end)[0].seconds
            ratios[device.id] = then / now if now > 0 and then > 0 else 1.0
    for name, device in devices.items():
        if name not in ratios:
            ratios[name] = device.speed / idle_speeds.get(name, device.speed)
    return ratios


def count_looks(
    counts: Mapping[str, int], ratios: Mapping[str, float], threshold: float
) -> dict[str, int]:
    """Return for each device at how many looks in a row its speed was off.

    One look may be a hiccup; a device that is back in time starts at zero again.
    """
    return {
        device: counts.get(device, 0) + 1
        for device, ratio in ratios.items()
        if abs(ratio - 1) > threshold
    }


def speed_text(device: str, ratio: float) -> str:
    """Return the change of a device's speed in words."""
    change = "slower" if ratio < 1 else "faster"
    factor = 1 / ratio if ratio < 1 else ratio
    return f"{device} is {factor:.3g} times {change} than planned"


@dataclass(frozen=True, slots=True)
class Decision:
    """Which plan is next: the best one found, or the running one, kept."""

    outcome: Outcome
    is_kept: bool
    reason: str


# What no gain in requests per second outweighs, and what it means when it gets better.
_FIRST: Final = {
    "is_behind": "the running plan is behind the best device alone",
    "is_mixed": "roles can be separate now",
    "num_slow": "streams become fast enough",
}


def decide(running: Plan | None, kept: Outcome | None, best: Outcome, min_gain: float) -> Decision:
    """Return the best plan when it repays the move, else the running plan's stages.

    Args:
        running: The plan that serves.
        kept: Its stages with the predictions of now; None when it cannot serve.
        best: What was found for the devices of now.
        min_gain: Share of requests per second that a move of weights must gain, after what
            the move itself costs (`Objective.horizon_seconds`); it covers errors of prediction.
    """
    if running is None:
        return Decision(best, False, "the first plan")
    if kept is None or len(kept.plan.replicas) < len(running.replicas):
        return Decision(best, False, "the running plan is broken")
    if {r.id for r in best.plan.replicas} == {r.id for r in kept.plan.replicas}:
        return Decision(kept, True, "the same replicas are the best again")
    for name, what in _FIRST.items():
        better, worse = getattr(best.score, name), getattr(kept.score, name)
        if better != worse:
            if better < worse:
                return Decision(best, False, what)
            break
    gain = kept.score.objective_seconds / best.score.objective_seconds - 1
    if gain >= min_gain:
        return Decision(best, False, f"{gain:.0%} more requests per second")
    return Decision(
        _with_idle_reason(kept, gain, min_gain),
        True,
        f"another plan would gain {max(gain, 0):.1%}, a move must gain {min_gain:.0%}",
    )


def _with_idle_reason(kept: Outcome, gain: float, min_gain: float) -> Outcome:
    if gain <= 0:
        return kept
    reason = (
        f"the best plan would serve {gain:.1%} more requests, "
        f"less than the {min_gain:.0%} that repay moving weights"
    )
    plan = kept.plan
    idle = [type(entry)(device=entry.device, reason=reason) for entry in plan.idle]
    reasons = {**plan.reasons, **{entry.device: f"idle: {reason}" for entry in idle}}
    return replace(kept, plan=msgspec.structs.replace(plan, idle=idle, reasons=reasons))
