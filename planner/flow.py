"""How many requests per second a set of replicas passes through both phases. Pure.

The measure is the paper's: seconds per request of the slower phase,
``max(N_P / sum PS, N_D / sum DS)``. Ours on top of it: the role `both`, which gives part of
its time to each phase, so that the phases end together; and links, which limit how many
prompts a replica can hand over or take (`Links`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from broker.plan import Role
from planner.model import Workload
from planner.performance import Member, Performance

_LEAST = 1e-12


class Links(Protocol):
    """What the links between replicas allow."""

    def limits(self, members: Sequence[Member]) -> Sequence[float]:
        """Return [R], requests per second whose KV caches each replica can send or take."""


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
    prompts = [
        p if m.role is Role.PREFILL else 0.0 for m, (p, _) in zip(members, rates, strict=True)
    ]
    answers = [
        a if m.role is Role.DECODE else 0.0 for m, (_, a) in zip(members, rates, strict=True)
    ]
    if links is not None:
        limits = links.limits(members)
        prompts = [min(p, limit) for p, limit in zip(prompts, limits, strict=True)]
        answers = [min(a, limit) for a, limit in zip(answers, limits, strict=True)]
    both = [r for r, member in enumerate(members) if member.role is Role.BOTH]
    parts = balanced_parts(sum(prompts), sum(answers), [rates[r] for r in both])
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
    prompts: float, answers: float, shared: Sequence[tuple[float, float]]
) -> list[float]:
    """Return the part of its time that each shared one gives to prefill, as `balanced_rate`.

    The maximum of ``min(prompts, answers)`` is a linear program with one part per member;
    giving prefill the members in the order of prompts/answers is optimal (a fractional
    knapsack).
    """
    parts = [0.0] * len(shared)
    answers += sum(rates[1] for rates in shared)
    for index in sorted(range(len(shared)), key=lambda i: shared[i][1] / shared[i][0]):
        if prompts >= answers:
            break
        gain, loss = shared[index]
        parts[index] = min((answers - prompts) / (gain + loss), 1.0)
        prompts += parts[index] * gain
        answers -= parts[index] * loss
    return parts
