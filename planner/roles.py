"""Which replicas prefill and which decode, and what makes one choice better. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import inf, prod
from typing import Final, NamedTuple

from broker.plan import Role
from planner.flow import balanced_rate, flow_of, phase_rates
from planner.model import Roles, Workload
from planner.performance import Member, Options, Performance
from planner.rival import Part, Rival, Times
from planner.terms import Terms

MAX_ENUMERATED: Final = 6561
"""All roles of eight replicas: with so many assignments a choice is exact."""
# Up to so many groups the choice by sums is repaired by the whole objective, whose time
# grows with the cube of their number.
_MAX_REPAIRED: Final = 12
# With more replicas than this the latency that breaks ties leaves out KV transfers, which
# are counted pair by pair.
_MAX_PAIRED: Final = 40
# Sums in another order differ by less than this.
_ROUNDING: Final = 1e-8
_LEAST: Final = 1e-12


class Score(NamedTuple):
    """What is compared, smaller being better, in this order.

    Seconds are rounded to nine digits, so that rounding never decides between equals. Where
    all of it is equal, the first in order wins: of roles in the order of `Role`, of groupings
    in the order of device ids, in the genetic algorithm in the order of their bit masks.

    Attributes:
        is_behind: 1 when the best device alone serves more requests or answers sooner
            (`planner.rival`), else 0.
        is_mixed: 1 when roles should be separate and are not, else 0.
        num_slow: Decoding replicas that give not even one request ``min_tps``.
        objective_seconds: Seconds per request that counts: one that meets the targets, where
            there are any; with the penalties of moves and energy (`planner.terms`). Without
            these it is ``request_seconds``, and never less.
        request_seconds: The slower phase per request, whether it meets targets or not.
        latency_seconds: A lone request's first token, what is left of its KV transfer, and
            its answer.
        num_devices: Devices in use.
    """

    is_behind: int
    is_mixed: int
    num_slow: int
    objective_seconds: float
    request_seconds: float
    latency_seconds: float
    num_devices: int


WORST: Final = Score(2, 2, 0, inf, inf, inf, 0)


RoleRule = Callable[[Sequence[Member]], bool]
"""Whether a set of replicas with their roles may be used at all."""


def choose_roles(
    groups: Sequence[Options],
    workload: Workload,
    roles: Roles,
    rule: RoleRule | None = None,
    terms: Terms | None = None,
    max_enumerated: int = MAX_ENUMERATED,
    rival: Rival | None = None,
) -> tuple[Score, tuple[Member, ...]]:
    """Return the best roles for groups that each hold the model, among those the rule admits.

    Exact while the assignments are few. For many groups those are compared whose sums are
    best (`planner.thresholds`); up to twelve groups the best of them is then repaired by the
    whole objective, one role at a time, until no change helps. Ties go to the first assignment
    in order.

    Args:
        groups: What each is worth in each role.
        workload: The requests that are planned for.
        roles: Which may be used.
        rule: What may be used at all.
        terms: What the objective adds to the paper's.
        max_enumerated: Up to so many assignments are enumerated.
        rival: What the choice should not be behind; None: nothing.
    """
    if not groups:
        return WORST, ()
    search = _Search(groups, workload, roles, rule, terms, rival)
    allowed = allowed_roles(groups, roles)
    if not all(allowed):
        return WORST, ()
    if prod(map(len, allowed)) <= max_enumerated:
        return search.best(product(*allowed))
    promising = (_within(chosen, allowed) for chosen in search.promising(roles is Roles.MIXED))
    score, members = search.best(promising)
    if score.is_behind and rival is not None:
        quick = _quick_enough(groups, workload, rival, 1 / score.request_seconds)
        if quick and quick != list(groups):
            found = choose_roles(quick, workload, roles, rule, terms, max_enumerated, rival)
            if found[0] < score:
                return found
    while len(groups) <= _MAX_REPAIRED:
        chosen = tuple(member.role for member in members)
        better = search.best(_neighbours(chosen, allowed))
        if better[0] >= score:
            break
        score, members = better
    return score, members


def _quick_enough(
    groups: Sequence[Options], workload: Workload, rival: Rival, rate: float
) -> list[Options]:
    """Return groups with the roles in which a lone request is no longer than a plan may take.

    Among many replicas some are slow, and one of them is enough to leave a plan behind the
    rival. Whoever is too slow for both phases is left out.
    """
    most_prefill, most_answer = rival.most_seconds(rate)
    found = []
    for group in groups:
        prefills = group.prefill.ttft_seconds <= most_prefill
        decodes = workload.answer_tokens * group.decode.tpot_seconds <= most_answer
        kept = {Role.PREFILL: prefills, Role.DECODE: decodes, Role.BOTH: prefills and decodes}
        roles = tuple([role for role in group.roles if kept[role]])
        if roles:
            found.append(replace(group, roles=roles))
    return found


def allowed_roles(groups: Sequence[Options], roles: Roles) -> list[tuple[Role, ...]]:
    """Return [R], the roles that each group may have beside the others; empty for none.

    What owners do not allow is no role of a group, whatever it would gain.
    """
    usual: tuple[Role, ...] = (Role.PREFILL, Role.DECODE)
    if len(groups) == 1:
        usual = (Role.BOTH,)
    elif roles is Roles.MIXED:
        usual = (Role.PREFILL, Role.DECODE, Role.BOTH)
    return [tuple([role for role in usual if role in group.roles]) for group in groups]


def _within(chosen: tuple[Role, ...], allowed: Sequence[Sequence[Role]]) -> tuple[Role, ...]:
    return tuple(
        [role if role in some else some[0] for role, some in zip(chosen, allowed, strict=True)]
    )


def _neighbours(
    chosen: tuple[Role, ...], allowed: Sequence[Sequence[Role]]
) -> Iterator[tuple[Role, ...]]:
    for g, role in enumerate(chosen):
        for other in allowed[g]:
            if other is not role:
                yield (*chosen[:g], other, *chosen[g + 1 :])


class _Search:
    """Assignments of roles to some groups.

    Most assignments are far from the best, which their requests per second alone show; only
    the others get a score.
    """

    def __init__(
        self,
        groups: Sequence[Options],
        workload: Workload,
        roles: Roles,
        rule: RoleRule | None,
        terms: Terms | None,
        rival: Rival | None,
    ) -> None:
        self._groups = groups
        self._workload = workload
        self._roles = roles
        self._rule = rule
        self._terms = terms
        self._rival = rival
        self._slow = [not group.decode.keeps_min_tps for group in groups]
        self._slow_both = [not group.both.keeps_min_tps for group in groups]
        self._prompts = [
            phase_rates(group.prefill, workload)[0] * (Role.PREFILL in group.roles)
            for group in groups
        ]
        self._answers = [
            phase_rates(group.decode, workload)[1] * (Role.DECODE in group.roles)
            for group in groups
        ]
        self._shared = [phase_rates(group.both, workload) for group in groups]
        self._parts = [
            {
                role: _parts(
                    Member(role, getattr(group, role.value)),
                    self._prompts[g],
                    self._answers[g],
                    workload,
                )
                for role in Role
            }
            for g, group in enumerate(groups)
        ]

    def promising(self, with_both: bool) -> Iterator[tuple[Role, ...]]:
        """Yield a few assignments that serve most requests per second, or nearly so."""
        # It needs numpy, which readers of plans do not.
        from planner.thresholds import promising_roles

        prompts, answers = self._prompts, self._answers
        if self._terms is not None and self._terms.counts_kv:
            # KV caches leave and arrive over links, whatever the other replicas are.
            prompts = [
                min(rate, 1 / max(group.prefill.send_seconds, _LEAST))
                for rate, group in zip(prompts, self._groups, strict=True)
            ]
            answers = [
                min(rate, 1 / max(group.decode.receive_seconds, _LEAST))
                for rate, group in zip(answers, self._groups, strict=True)
            ]
        # Whoever is too slow for `min_tps` decodes only where nobody else can.
        slow = 1.0 if all(self._slow) else 0.0
        fast_enough = [
            rate * (slow if is_slow else 1.0)
            for rate, is_slow in zip(answers, self._slow, strict=True)
        ]
        return promising_roles(prompts, fast_enough, with_both)

    def best(self, candidates: Iterable[tuple[Role, ...]]) -> tuple[Score, tuple[Member, ...]]:
        """Return the best candidate and its score; `WORST` when none can serve.

        Begins with those that could be best, and ends when no other can.
        """
        ranked = [
            (least, index, chosen)
            for index, chosen in enumerate(candidates)
            if (least := self._least(chosen)) is not None
        ]
        best = WORST
        best_members: tuple[Member, ...] = ()
        for least, _, chosen in sorted(ranked):
            worst = best.objective_seconds * (1 + _ROUNDING)
            if least > (best.is_behind, best.is_mixed, best.num_slow, worst):
                break
            members = tuple(
                [
                    Member(role, getattr(group, role.value))
                    for role, group in zip(chosen, self._groups, strict=True)
                ]
            )
            found = score(members, self._workload, self._roles, self._terms, self._rival)
            if found < best and (self._rule is None or self._rule(members)):
                best, best_members = found, members
        return best, best_members

    def _least(self, chosen: tuple[Role, ...]) -> tuple[int, int, int, float] | None:
        """Return what the first values of a score are at least; None if a phase is missing."""
        prompts = answers = 0.0
        num_slow = 0
        shared = []
        for g, role in enumerate(chosen):
            if role is Role.PREFILL:
                prompts += self._prompts[g]
            elif role is Role.DECODE:
                answers += self._answers[g]
                num_slow += self._slow[g]
            else:
                shared.append(self._shared[g])
                num_slow += self._slow_both[g]
        rate = balanced_rate(prompts, answers, shared) if shared else min(prompts, answers)
        if rate <= 0:
            return None
        # Rounded, so that the order of a sum does not decide the order of equals.
        seconds = round(1 / rate, 12)
        is_mixed = bool(shared) and self._roles is not Roles.MIXED
        return int(self._must_be_behind(chosen, num_slow, seconds)), is_mixed, num_slow, seconds

    def _must_be_behind(self, chosen: tuple[Role, ...], num_slow: int, seconds: float) -> bool:
        """Whether a choice is behind even if it serves so many requests, and KV moves at once."""
        if self._rival is None:
            return False
        parts = [part[role] for part, role in zip(self._parts, chosen, strict=True)]
        prefills = [prefill for prefill, _ in parts if prefill is not None]
        decodes = [decode for _, decode in parts if decode is not None]
        return self._rival.must_leave_behind(Times(num_slow, seconds, seconds, prefills, decodes))


def score(
    members: Sequence[Member],
    workload: Workload,
    roles: Roles,
    terms: Terms | None = None,
    rival: Rival | None = None,
) -> Score:
    """Return how good a set of replicas is; `WORST` when a phase has no replica.

    Without ``terms`` the objective is the paper's.
    """
    prefills = [m.performance for m in members if m.role is not Role.DECODE]
    decodes = [m.performance for m in members if m.role is not Role.PREFILL]
    if not prefills or not decodes:
        return WORST
    flow = flow_of(members, workload, terms)
    seconds = objective_seconds = 1 / max(flow.rate, 1e-12)
    latency = _latency(prefills, decodes, workload)
    exposed = 0.0
    is_paired = terms is not None and len(members) <= _MAX_PAIRED
    if terms is not None:
        objective_seconds = terms.objective_seconds(members, flow)
        if is_paired:
            exposed = terms.kv_times(members, flow).exposed_seconds
    mixed = roles is not Roles.MIXED and any(m.role is Role.BOTH for m in members)
    num_slow = sum(not p.keeps_min_tps for p in decodes)
    is_behind = False
    if rival is not None:
        waits = [0.0] * len(members)
        if terms is not None and is_paired:
            waits = terms.exposed_seconds(members, flow)
        parts = [
            _parts(member, prompts, answers, workload, wait)
            for member, prompts, answers, wait in zip(
                members, flow.prompts, flow.answers, waits, strict=True
            )
        ]
        is_behind = rival.leaves_behind(
            Times(
                num_slow,
                objective_seconds,
                seconds,
                [prefill for prefill, _ in parts if prefill is not None],
                [decode for _, decode in parts if decode is not None],
            )
        )
    return Score(
        int(is_behind),
        int(mixed),
        num_slow,
        _rounded(objective_seconds),
        _rounded(seconds),
        _rounded(latency + exposed),
        sum(len(m.performance.devices) for m in members),
    )


def _latency(
    prefills: Sequence[Performance], decodes: Sequence[Performance], workload: Workload
) -> float:
    """Return a lone request's time without KV transfer, mean over replicas by their rates."""
    ttft = _mean([p.ttft_seconds for p in prefills], [p.prefill_rate for p in prefills])
    tpot = _mean([p.tpot_seconds for p in decodes], [p.decode_rate for p in decodes])
    return ttft + workload.answer_tokens * tpot


def _parts(
    member: Member, prompts: float, answers: float, workload: Workload, kv_exposed: float = 0.0
) -> tuple[Part | None, Part | None]:
    """Return a member's part in prefill and in decode, if any."""
    found = member.performance
    if member.role is Role.BOTH:
        prompts, answers = phase_rates(found, workload)
        prompts = answers = prompts * answers / (prompts + answers)
    prefill = Part(kv_exposed + found.ttft_seconds, prompts)
    decode = Part(kv_exposed + workload.answer_tokens * found.tpot_seconds, answers)
    return (
        None if member.role is Role.DECODE else prefill,
        None if member.role is Role.PREFILL else decode,
    )


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
