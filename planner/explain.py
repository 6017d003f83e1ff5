"""A plan's reasons in words and numbers, for the person who wonders. Pure."""

from __future__ import annotations

from typing import Final

from planner.cost import DeviceCost
from planner.groupings.search import Solution
from planner.model import InfeasiblePlanError
from planner.replicas import Fog
from planner.rival import Rival
from planner.roles import Score

MOST_NAMED: Final = 8
"""More devices than this are counted in an error, not listed."""


def format_bytes(count: float) -> str:
    """Return decimal units with one digit: ``9.8 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def format_seconds(seconds: float) -> str:
    """Return seconds or milliseconds with three significant digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def change_text(share: float) -> str:
    """Return a relative change as a person reads it: ``-49 %``, ``+0.4 %``, ``3.2 times``."""
    if abs(share) < 0.0005:
        return "no change"
    if share >= 1:
        return f"{share + 1:.3g} times" if share < 999 else f"{share + 1:.0f} times"
    digits = 1 if abs(share) < 0.0995 else 0
    return f"{share * 100:+.{digits}f} %"


def infeasible(fog: Fog) -> InfeasiblePlanError:
    """Return the error for a fog in which no group of devices holds the model."""
    model = fog.model
    kv = fog.context_tokens * sum(model.kv_bytes)
    offered = sum(offered_bytes(cost) for cost in fog.costs)
    # Held by several devices, both ends need their own copy of a tied matrix.
    weights = model.weight_bytes + (model.shared_bytes if len(fog.costs) > 1 else 0)
    needed = weights + kv
    demand = (
        f"the model needs {format_bytes(needed)} ({format_bytes(weights)} of {model.weights} "
        f"weights and {format_bytes(kv)} of KV cache for one request of "
        f"{fog.workload.context_tokens} tokens), the fog offers {format_bytes(offered)} on "
        f"{_count(len(fog.costs), 'device')}"
    )
    remedy = (
        "add devices, let them offer more memory (model_memory in fog.toml, E2LLM_NODE_MEMORY), "
        "or plan for a shorter context ([planner] context_tokens, E2LLM_PLANNER_CONTEXT_TOKENS)"
    )
    if offered < needed:
        missing = needed - offered
        return InfeasiblePlanError(
            f"{demand}: {format_bytes(missing)} are missing{_offers(fog)}; {remedy}", missing
        )
    smallest = smallest_stage_bytes(fog)
    useless = [cost for cost in fog.costs if offered_bytes(cost) < smallest]
    if useless:
        names = ", ".join(f"{c.id} ({format_bytes(offered_bytes(c))})" for c in useless)
        usable = offered - sum(offered_bytes(cost) for cost in useless)
        missing = max(needed - usable, 0)
        lack = f", without them {format_bytes(missing)} are missing" if missing else ""
        return InfeasiblePlanError(
            f"{demand}, but one layer with its KV cache needs {format_bytes(smallest)} and "
            f"{names} cannot hold it{lack}; {remedy}",
            missing,
        )
    ends = max(model.embedding_bytes, model.head_bytes) + smallest
    if owned := [cost for cost in fog.costs if cost.owner.text]:
        limits = "; ".join(f"{cost.id}: {cost.owner.text}" for cost in owned[:MOST_NAMED])
        remedy = f"{remedy}, or ask for less than owners allow now ({limits})"
    return InfeasiblePlanError(
        f"{demand}, but no split into whole layers fits: a layer with its KV cache needs "
        f"{format_bytes(smallest)}, and with embedding or head up to {format_bytes(ends)}"
        f"{_offers(fog)}; {remedy}"
    )


def _offers(fog: Fog) -> str:
    """Return what each device offers, in brackets, where a person can take them in."""
    if not 0 < len(fog.costs) <= MOST_NAMED:
        return ""
    each = (f"{cost.id} {format_bytes(offered_bytes(cost))}" for cost in fog.costs)
    return f" (offered: {', '.join(each)})"


def offered_bytes(cost: DeviceCost) -> int:
    """Return what a device offers, host memory for feed-forward weights included."""
    return cost.memory_bytes + cost.host_memory_bytes


def smallest_stage_bytes(fog: Fog) -> int:
    """Return what the smallest stage without embedding and head needs."""
    model = fog.model
    pairs = zip(model.block_bytes, model.kv_bytes, strict=True)
    return min(weights + fog.context_tokens * kv for weights, kv in pairs)


def owner_text(cost: DeviceCost) -> str:
    """Return what the device's owner allows, to follow a reason; empty without limits."""
    return f"; its owner allows {cost.owner.text}" if cost.owner.text else ""


def idle_reason(fog: Fog, device: int, solution: Solution, rival: Rival | None) -> str:
    """Return why a device is in no replica, beside ``rival``, the best device alone."""
    return _idle_reason(fog, device, solution, rival) + owner_text(fog.costs[device])


def _idle_reason(fog: Fog, device: int, solution: Solution, rival: Rival | None) -> str:
    cost = fog.costs[device]
    smallest = smallest_stage_bytes(fog)
    if offered_bytes(cost) < smallest:
        return (
            f"it offers {format_bytes(offered_bytes(cost))}, and one layer with its KV cache for "
            f"{fog.workload.context_tokens} tokens needs {format_bytes(smallest)}"
        )
    chosen = solution.score
    with_it = solution.best_with.get(device)
    if with_it is not None:
        if rival is not None and with_it.is_behind > chosen.is_behind:
            return _behind_reason(fog, with_it, rival)
        if with_it.is_mixed > chosen.is_mixed:
            return "with it no two complete replicas are possible, so prefill would stall decode"
        if with_it.num_slow > chosen.num_slow:
            return f"with it a stream falls under {fog.workload.min_tps:g} tokens per second"
        if with_it.objective_seconds > chosen.objective_seconds * (1 + 1e-6):
            return (
                f"the best plan that uses it takes {format_seconds(with_it.objective_seconds)} "
                f"per request{_that_counts(fog)}, "
                f"this one {format_seconds(chosen.objective_seconds)}"
            )
        if with_it.latency_seconds > chosen.latency_seconds * (1 + 1e-6):
            return (
                f"with it the throughput is the same and a lone request takes "
                f"{format_seconds(with_it.latency_seconds)} instead of "
                f"{format_seconds(chosen.latency_seconds)}"
            )
        return "with it the plan is not faster"
    if solution.best_with:
        return "no replica that includes it holds the model in whole layers"
    if rival is not None:
        return f"no better plan that uses it was found that is not behind {rival.device} alone"
    return "no better plan that uses it was found"


def _behind_reason(fog: Fog, with_it: Score, rival: Rival) -> str:
    own = rival.times
    rate, alone = 1 / with_it.request_seconds, 1 / own.request
    if with_it.objective_seconds > own.objective * (1 + 1e-6):
        return (
            f"the best plan that uses it takes {format_seconds(with_it.objective_seconds)} per "
            f"request{_that_counts(fog)}, {rival.device} alone {format_seconds(own.objective)}"
        )
    what = (
        f"a lone request takes {format_seconds(with_it.latency_seconds)} instead of "
        f"{format_seconds(rival.latency)}"
        if with_it.latency_seconds > rival.latency * (1 + 1e-6)
        else f"some requests take more than {rival.most_times(rate):.2g} times as long"
    )
    return (
        f"it would make answers later than {rival.device} alone: {what}, for {rate:.3g} requests "
        f"per second instead of {alone:.3g}"
    )


def _that_counts(fog: Fog) -> str:
    """Return what else the seconds per request contain, in words."""
    parts = " within the targets" if fog.objective.has_targets else ""
    return parts + (", energy counted" if fog.objective.energy_weight else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
