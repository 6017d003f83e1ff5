"""Which replicas prefill and which decode. Pure.

The measure is the paper's: seconds per request of the slower phase,
``max(N_P / sum PS, N_D / sum DS)``. Our addition is the role `both`: such a replica gives
part of its time to each phase, and the parts are chosen so that the phases end together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf
from typing import Final, NamedTuple

from broker.plan import Role
from planner.model import Roles, Workload
from planner.replicas import Options, Performance

# Up to so many assignments are enumerated; beyond, a threshold on PS/DS and repair.
MAX_ENUMERATED: Final = 6561


class Score(NamedTuple):
    """What is compared, smaller being better, in this order.

    Attributes:
        is_mixed: 1 when roles should be separate and are not, else 0.
        num_slow: Decoding replicas that give not even one request ``min_tps``.
        request_seconds: The slower phase per request (rounded to nine digits, so that
            rounding never decides between equals).
        latency_seconds: A lone request's first token and then its answer.
        num_devices: Devices in use.
    """

    is_mixed: int
    num_slow: int
    request_seconds: float
    latency_seconds: float
    num_devices: int


WORST: Final = Score(2, 0, inf, inf, 0)


@dataclass(frozen=True, slots=True)
class Member:
    """One replica of a solution."""

    role: Role
    performance: Performance


RoleRule = Callable[[Sequence[Member]], bool]
"""Whether a set of replicas with their roles may be used at all."""


def choose_roles(
    groups: Sequence[Options], workload: Workload, roles: Roles, rule: RoleRule | None = None
) -> tuple[Score, tuple[Member, ...]]:
    """Return the best roles for groups that each hold the model, among those the rule admits.

    Exact while the assignments are few. For many groups: sorted by PS/DS, the first k
    prefill, for every k, and the best of these is repaired by changing one role at a time
    until no change helps. Ties go to the first assignment in order.
    """
    if not groups:
        return WORST, ()
    allowed = _allowed(len(groups), roles)
    if len(allowed) ** len(groups) <= MAX_ENUMERATED:
        candidates: Iterable[tuple[Role, ...]] = product(allowed, repeat=len(groups))
        return _best(groups, candidates, workload, roles, rule)
    score, members = _best(groups, _thresholds(groups, allowed), workload, roles, rule)
    while True:
        chosen = tuple(member.role for member in members)
        better = _best(groups, _neighbours(chosen, allowed), workload, roles, rule)
        if better[0] >= score:
            return score, members
        score, members = better


def _allowed(num_groups: int, roles: Roles) -> tuple[Role, ...]:
    if num_groups == 1:
        return (Role.BOTH,)
    if roles is Roles.MIXED:
        return (Role.PREFILL, Role.DECODE, Role.BOTH)
    return (Role.PREFILL, Role.DECODE)


def _thresholds(groups: Sequence[Options], allowed: Sequence[Role]) -> Iterator[tuple[Role, ...]]:
    by_ratio = sorted(
        range(len(groups)),
        key=lambda g: (-groups[g].prefill.prefill_rate / groups[g].decode.decode_rate, g),
    )
    for num_prefill in range(len(groups) + 1):
        chosen = [Role.DECODE] * len(groups)
        for g in by_ratio[:num_prefill]:
            chosen[g] = Role.PREFILL
        yield tuple(chosen)
        if Role.BOTH in allowed and num_prefill < len(groups):
            chosen[by_ratio[num_prefill]] = Role.BOTH
            yield tuple(chosen)


def _neighbours(chosen: tuple[Role, ...], allowed: Sequence[Role]) -> Iterator[tuple[Role, ...]]:
    for g, role in enumerate(chosen):
        for other in allowed:
            if other is not role:
                yield (*chosen[:g], other, *chosen[g + 1 :])


def _best(
    groups: Sequence[Options],
    candidates: Iterable[tuple[Role, ...]],
    workload: Workload,
    roles: Roles,
    rule: RoleRule | None,
) -> tuple[Score, tuple[Member, ...]]:
    best = WORST
    best_members: tuple[Member, ...] = ()
    for chosen in candidates:
        members = tuple(
            Member(role, getattr(group, role.value))
            for role, group in zip(chosen, groups, strict=True)
        )
        found = score(members, workload, roles)
        if found < best and (rule is None or rule(members)):
            best, best_members = found, members
    return best, best_members


def score(members: Sequence[Member], workload: Workload, roles: Roles) -> Score:
    """Return how good a set of replicas is; `WORST` when a phase has no replica."""
    prefills = [m.performance for m in members if m.role is not Role.DECODE]
    decodes = [m.performance for m in members if m.role is not Role.PREFILL]
    if not prefills or not decodes:
        return WORST
    seconds = request_seconds(members, workload)
    ttft = _mean([p.ttft_seconds for p in prefills], [p.prefill_rate for p in prefills])
    tpot = _mean([p.tpot_seconds for p in decodes], [p.decode_rate for p in decodes])
    mixed = roles is not Roles.MIXED and any(m.role is Role.BOTH for m in members)
    return Score(
        int(mixed),
        sum(not p.keeps_min_tps for p in decodes),
        _rounded(seconds),
        _rounded(ttft + workload.answer_tokens * tpot),
        sum(len(m.performance.devices) for m in members),
    )


def request_seconds(members: Sequence[Member], workload: Workload) -> float:
    """Return ``max(N_P / sum PS, N_D / sum DS)`` with the time of `both` shared best."""
    prefill = sum(m.performance.prefill_rate for m in members if m.role is Role.PREFILL)
    decode = sum(m.performance.decode_rate for m in members if m.role is Role.DECODE)
    shared = [
        (
            m.performance.prefill_rate / workload.prompt_tokens,
            m.performance.decode_rate / workload.answer_tokens,
        )
        for m in members
        if m.role is Role.BOTH
    ]
    rate = balanced_rate(prefill / workload.prompt_tokens, decode / workload.answer_tokens, shared)
    return 1 / max(rate, 1e-12)


def balanced_rate(prompts: float, answers: float, shared: Iterable[tuple[float, float]]) -> float:
    """Return the requests per second when shared time goes where it is needed.

    Args:
        prompts: Prompts per second of those that only prefill.
        answers: Answers per second of those that only decode.
        shared: (prompts, answers) per second of each that can do either.

    The maximum of ``min(prompts, answers)`` is a linear program with one share per member;
    giving prefill the members in the order of prompts/answers is optimal (a fractional
    knapsack).
    """
    members = sorted(shared, key=lambda rates: rates[1] / rates[0])
    answers += sum(rates[1] for rates in members)
    for gain, loss in members:
        if prompts >= answers:
            break
        share = min((answers - prompts) / (gain + loss), 1.0)
        prompts += share * gain
        answers -= share * loss
    return min(prompts, answers)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
