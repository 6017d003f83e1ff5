"""Why each device of a plan got its place or none, and what its absence would cost. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from broker.plan import Plan, Rates
from planner.explain import change_text, format_bytes, format_seconds
from planner.model import DeviceSpec, InfeasiblePlanError
from planner.whatif.outcomes import Problem


@dataclass(frozen=True, slots=True)
class Place:
    """Why a device is where it is.

    Attributes:
        without: What the fog would serve without it, or why it could not.
    """

    device: str
    reason: str
    without: str


def explain(problem: Problem, devices: Sequence[DeviceSpec], plan: Plan) -> Iterator[Place]:
    """Yield a place for every device; plans once more for each that the plan uses."""
    rate = _rate(plan.predicted)
    idle = {entry.device for entry in plan.idle}
    for device in devices:
        without = "nothing changes: it is not used"
        if device.id not in idle:
            without = _without(problem, [d for d in devices if d is not device], rate)
        yield Place(device.id, plan.reasons.get(device.id, ""), without)


def _without(problem: Problem, left: Sequence[DeviceSpec], rate: float) -> str:
    if not left:
        return "no device is left"
    try:
        other = _rate(problem.plan(left).predicted)
    except InfeasiblePlanError as error:
        return f"no plan: {error}"
    return f"{other:.3g} requests/s ({_compared(other, rate)})"


def single_text(problem: Problem, devices: Sequence[DeviceSpec], plan: Plan) -> str:
    """Return the plan compared with the best single device, in throughput and latency."""
    single = plan.best_single_device
    if single is None:
        return _no_single_text(problem, devices)
    used = {stage.device for replica in plan.replicas for stage in replica.stages}
    if used == {single.device}:
        return (
            f"The plan is the best single device, {single.device}: no group serves more and "
            "answers as soon."
        )
    rate, alone = _rate(plan.predicted), _rate(single.predicted)
    what = " within the targets" if problem.objective.has_targets else ""
    return (
        f"The fog serves {rate:.3g} requests/s{what}; its best single device, {single.device}, "
        f"serves {alone:.3g} alone ({_compared(rate, alone)} with the fog). A lone request: "
        f"{_latency_text(plan.predicted)}; alone on {single.device}: "
        f"{_latency_text(single.predicted)}."
    )


def _no_single_text(problem: Problem, devices: Sequence[DeviceSpec]) -> str:
    model, context = problem.model, problem.workload.context_tokens
    needed = model.stage_bytes(0, model.num_layers, context)
    largest = max(devices, key=lambda device: device.memory_bytes)
    return (
        f"No single device holds the whole model, so there is none to compare with: it needs "
        f"{format_bytes(needed)} with the KV cache of one request of {context} tokens, and the "
        f"largest, {largest.id}, offers {format_bytes(largest.memory_bytes)}."
    )


def _rate(rates: Rates) -> float:
    """Return requests per second, those within the targets where there are any."""
    good = rates.good_requests_per_second
    return (rates.requests_per_second or 0.0) if good is None else good


def _latency_text(rates: Rates) -> str:
    return (
        f"first token after {format_seconds(rates.ttft_seconds or 0.0)}, then "
        f"{format_seconds(rates.tpot_seconds or 0.0)} each"
    )


def _compared(rate: float, other: float) -> str:
    return change_text(rate / other - 1) if other > 0 else "from none"
