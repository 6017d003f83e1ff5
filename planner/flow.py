"""How many requests per second a set of replicas passes through both phases. Pure.

The measure is the paper's: seconds per request of the slower phase,
``max(N_P / sum PS, N_D / sum DS)``. Ours on top of it: the role `both`, which gives part of
its time to each phase, so that the phases end together; and links, which limit how many
prompts a replica can hand over or take (`Links`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple, Protocol

from broker.plan import Role
from planner.model import Workload
from planner.performance import Member, Performance

_LEAST: Final = 1e-12
_EQUAL: Final = 1e-9


class Limit(NamedTuple):
    """Requests per second whose KV caches a replica's links can send, and can receive."""

    send: float
    receive: float


NO_LIMIT: Final = Limit(inf, inf)


class Links(Protocol):
    """What the links between replicas allow."""

    def limits(self, members: Sequence[Member]) -> Sequence[Limit]:
        """Return [R], the limits of each replica."""


class Flow(NamedTuple):
    """What each of some replicas can do with the time that it has for a phase.

    Attributes:
        prompts: [R], per second.
        answers: [R], per second.
    """

    prompts: tuple[float, ...]
    answers: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Requests per second of the slower phase."""
        return min(sum(self.prompts), sum(self.answers))

    def shares(self) -> tuple[list[float], list[float]]:
        """Return [R] each: which part of all prompts and of all answers is a replica's.

        All replicas of a phase are equally busy, as the paper's sums assume.
        """
        prompts, answers = max(sum(self.prompts), _LEAST), max(sum(self.answers), _LEAST)
        return [p / prompts for p in self.prompts], [a / answers for a in self.answers]


def flow_of(members: Sequence[Member], workload: Workload, links: Links | None = None) -> Flow:
    """Return the flow through replicas; without ``links`` KV caches move at once."""
    rates = [phase_rates(member.performance, workload) for member in members]
    limits = [NO_LIMIT] * len(members) if links is None else links.limits(members)
    prompts = [0.0] * len(members)
    answers = [0.0] * len(members)
    both = []
    for r, (member, (prompt_rate, answer_rate)) in enumerate(zip(members, rates, strict=True)):
        if member.role is Role.PREFILL:
            prompts[r] = min(prompt_rate, limits[r].send)
        elif member.role is Role.DECODE:
            answers[r] = min(answer_rate, limits[r].receive)
        else:
            both.append(r)
    if both:
        shared = [rates[r] for r in both]
        parts = balanced_parts(sum(prompts), sum(answers), shared, [limits[r] for r in both])
        for r, part in zip(both, parts, strict=True):
            prompts[r], answers[r] = part * rates[r][0], (1 - part) * rates[r][1]
    return Flow(tuple(prompts), tuple(answers))


def phase_rates(performance: Performance, workload: Workload) -> tuple[float, float]:
    """Return prompts and answers per second of a replica that does only the one."""
    return (
        performance.prefill_rate / workload.prompt_tokens,
        performance.decode_rate / workload.answer_tokens,
    )


def request_seconds(
    members: Sequence[Member], workload: Workload, links: Links | None = None
) -> float:
    """Return seconds per request of the slower phase, the time of `both` shared best."""
    return 1 / max(flow_of(members, workload, links).rate, _LEAST)


def balanced_rate(prompts: float, answers: float, shared: Sequence[tuple[float, float]]) -> float:
    """Return the requests per second when shared time goes where it is needed.

    Args:
        prompts: Prompts per second of those that only prefill.
        answers: Answers per second of those that only decode.
        shared: (prompts, answers) per second of each that can do either.
    """
    for part, (gain, loss) in zip(balanced_parts(prompts, answers, shared), shared, strict=True):
        prompts += part * gain
        answers += (1 - part) * loss
    return min(prompts, answers)


def balanced_parts(
    prompts: float,
    answers: float,
    shared: Sequence[tuple[float, float]],
    limits: Sequence[Limit] = (),
) -> list[float]:
    """Return the part of its time that each shared one gives to prefill, as `balanced_rate`.

    The maximum of ``min(prompts, answers)`` is a linear program with one part per member;
    giving prefill the members in the order of prompts/answers is optimal (a fractional
    knapsack). What a member prefills beyond what it decodes has to be sent, and the other
    way round, so its ``limits`` bound its part. Members of equal prompts/answers get equal
    parts where the bounds allow, since then the least has to be moved.
    """
    ranges = [
        _part_range(rates, limit)
        for rates, limit in zip(shared, limits or [NO_LIMIT] * len(shared), strict=True)
    ]
    parts = [low for low, _ in ranges]
    for (gain, loss), low in zip(shared, parts, strict=True):
        prompts += low * gain
        answers += (1 - low) * loss
    order = sorted(range(len(shared)), key=lambda i: shared[i][1] / shared[i][0])
    for index in order:
        if prompts >= answers:
            break
        gain, loss = shared[index]
        more = min((answers - prompts) / (gain + loss), ranges[index][1] - parts[index])
        parts[index] += more
        prompts += more * gain
        answers -= more * loss
    if len(shared) > 1:
        _even_out(parts, shared, ranges, order)
    return parts


def _part_range(rates: tuple[float, float], limit: Limit) -> tuple[float, float]:
    prompts, answers = rates
    both = prompts + answers
    low = max(answers - limit.receive, 0.0) / both
    return low, min(answers + limit.send, both) / both


def _even_out(
    parts: list[float],
    shared: Sequence[tuple[float, float]],
    ranges: Sequence[tuple[float, float]],
    order: Sequence[int],
) -> None:
    """Give members of equal prompts/answers equal parts, which changes no sum."""
    start = 0
    for end in range(1, len(order) + 1):
        (gain, loss), (other_gain, other_loss) = shared[order[start]], shared[order[end - 1]]
        is_equal = abs(loss * other_gain - other_loss * gain) <= _EQUAL * loss * other_gain
        if is_equal and end < len(order):
            continue
        alike = order[start : end if is_equal else end - 1]
        mean = sum(parts[i] * shared[i][0] for i in alike) / sum(shared[i][0] for i in alike)
        if all(ranges[i][0] <= mean <= ranges[i][1] for i in alike):
            for i in alike:
                parts[i] = mean
        start = end - 1
