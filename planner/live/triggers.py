"""What starts planning, and what a new plan must gain to be worth a move. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec.structs

from broker.plan import Plan
from planner.explain import format_bytes, format_seconds
from planner.model import DeviceSpec, Workload
from planner.planning import Outcome

_LINK_FACTOR: Final = 1.5
"""A link that differs less is within what probes vary."""
_MEMORY_FACTOR: Final = 1.25
_ROUNDING_SECONDS: Final = 1e-6


def changes(
    then: Mapping[str, DeviceSpec], now: Mapping[str, DeviceSpec], threshold: float
) -> list[str]:
    """Return in words how devices differ from what the plan was made with.

    Args:
        then: The devices that the plan was made with.
        now: The devices of now, as levels have it; those that are new or gone do not count.
        threshold: Share by which times must differ.
    """
    found = []
    for name in sorted(set(then) & set(now)):
        before, after = then[name], now[name]
        ratio = _block_seconds(before) / _block_seconds(after)
        # Within rounding: a level moves to where its readings are, or not at all.
        if max(ratio, 1 / ratio) > (1 + threshold) * (1 - 1e-9):
            found.append(speed_text(name, ratio))
        found += _link_changes(name, before, after)
        if after.owner != before.owner:
            found.append(f"the owner of {name} allows {after.owner.text or 'everything'} now")
        if after.memory_bytes > before.memory_bytes * _MEMORY_FACTOR:
            found.append(f"{name} has {format_bytes(after.memory_bytes)} for the model again")
    return found


def _block_seconds(device: DeviceSpec) -> float:
    """Return the time of one row in one block, which stands for all that it computes."""
    times = next(iter(device.blocks.values()))
    return max(times.decode[0].seconds, 1e-12) / device.speed


def _link_changes(name: str, before: DeviceSpec, after: DeviceSpec) -> Iterable[str]:
    old, new = before.link, after.link
    for what, factor in (
        (
            f"delay {format_seconds(new.latency_seconds)}",
            (new.latency_seconds + 1e-9) / (old.latency_seconds + 1e-9),
        ),
        (
            f"rate {format_bytes(new.bytes_per_second)}/s",
            new.bytes_per_second / old.bytes_per_second,
        ),
    ):
        if max(factor, 1 / factor) > _LINK_FACTOR:
            yield f"the link of {name} has changed: {what}"


def speed_text(device: str, ratio: float) -> str:
    """Return the change of a device's speed in words."""
    change = "slower" if ratio < 1 else "faster"
    factor = 1 / ratio if ratio < 1 else ratio
    return f"{device} is {factor:.3g} times {change} than planned"


def drift_text(plan: Plan, workload: Workload, threshold: float) -> str | None:
    """Return in words that requests have another shape than the plan was made for.

    What counts is the ratio of prompts to answers: it decides how many devices do what.
    """
    if not plan.prompt_tokens or not plan.answer_tokens:
        return None
    before = plan.prompt_tokens / plan.answer_tokens
    after = workload.prompt_tokens / workload.answer_tokens
    if max(before / after, after / before) <= 1 + threshold:
        return None
    return (
        f"requests have {workload.prompt_tokens} tokens of prompt and {workload.answer_tokens} of "
        f"answer, the plan is for {plan.prompt_tokens} and {plan.answer_tokens}"
    )


def hop_text(plan: Plan, overhead_seconds: float) -> str | None:
    """Return in words that hops take more or less beside their links than the plan says.

    Levels move rarely, so any difference is one that counts.
    """
    if abs(overhead_seconds - plan.hop_overhead_seconds) < _ROUNDING_SECONDS:
        return None
    return (
        f"a hop takes {format_seconds(overhead_seconds)} beside its links, the plan says "
        f"{format_seconds(plan.hop_overhead_seconds)}"
    )


# Scores are rounded to nine digits.
_EQUAL: Final = 1e-8


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


def decide(
    running: Plan | None,
    kept: Outcome | None,
    best: Outcome,
    min_gain: float,
    lost: Mapping[str, str] | None = None,
) -> Decision:
    """Return the best plan when it repays the move, else the running plan's stages.

    Args:
        running: The plan that serves.
        kept: Its stages with the predictions of now; None when it cannot serve.
        best: What was found for the devices of now.
        min_gain: Share of requests per second that a move of weights must gain, after what
            the move itself costs (`Objective.horizon_seconds`); it covers errors of prediction.
        lost: The devices that the running plan has no more, with the reason.
    """
    if running is None:
        return Decision(best, False, "the first plan")
    if kept is None or len(kept.plan.replicas) < len(running.replicas):
        return Decision(best, False, _broken_text(lost or {}))
    if {r.id for r in best.plan.replicas} == {r.id for r in kept.plan.replicas}:
        found = _with_standing(kept, best, min_gain)
        return Decision(found, True, "the same replicas are the best again")
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
        _with_idle_reason(_with_standing(kept, best, min_gain), gain, min_gain),
        True,
        f"another plan would gain {max(gain, 0):.1%}, a move must gain {min_gain:.0%}",
    )


def _broken_text(lost: Mapping[str, str]) -> str:
    if not lost:
        return "the running plan does not fit its devices any more"
    devices = ", ".join(f"{device} ({why})" for device, why in lost.items())
    return f"the running plan cannot go on without {devices}"


def _with_standing(kept: Outcome, best: Outcome, min_gain: float) -> Outcome:
    """Return the kept plan with what it says of itself: how far from the best found it is."""
    gap = 1 - best.score.objective_seconds / kept.score.objective_seconds
    if _stages(kept.plan) == _stages(best.plan) and abs(gap) < _EQUAL:
        text = best.plan.optimality
    else:
        text = (
            f"kept: {gap * 100:.2g} % below the best plan found, loading counted "
            f"(a gain under {min_gain * 100:.2g} % does not repay a move)"
            if gap > _EQUAL
            else "kept: as good as the best plan found, loading counted"
        )
        text = "; ".join(filter(None, [text, kept.plan.optimality]))
    return replace(kept, plan=msgspec.structs.replace(kept.plan, optimality=text))


def _stages(plan: Plan) -> set[tuple[str, str]]:
    return {(replica.id, replica.role) for replica in plan.replicas}


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
