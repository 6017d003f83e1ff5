"""What no split of a small fog's groupings exceeds, beside plans with the fastest splits. Pure.

Enumeration takes one split for each group and role, the one that computes fastest. Where KV
caches travel over slow links another split may carry more requests; so may one that answers
a lone request sooner beside the best device. Here every group gets the best of all its splits
in each number on its own (`Most`), as if one split had them all: no plan with these
groupings and roles, whatever its splits, has more requests per second, nor sooner answers. The
best of that over all groupings bounds every plan, and a plan that reaches it is optimal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Final, NamedTuple

from broker.plan import Role
from planner.bounds.least_links import least_receive_seconds, least_send_seconds
from planner.flow import balanced_rate
from planner.groupings.search import Groupings
from planner.masks import members_of
from planner.model import Roles
from planner.replicas import Fog
from planner.rival import Part, Times
from planner.roles import Score, allowed_roles

_LEAST: Final = 1e-12
# Scores are rounded to nine digits.
ROUNDING: Final = 1e-8


class Ceiling(NamedTuple):
    """What no plan exceeds, of those that may come before a given one.

    Attributes:
        rate: Requests per second.
        is_first: Whether no plan comes before it by more than requests per second: fewer
            replicas with mixed roles, or too slow for ``min_tps``.
    """

    rate: float
    is_first: bool


class _Group(NamedTuple):
    """Requests per second of one group, of its best splits; 0 where none is allowed, or counts.

    Attributes:
        prompts: With no KV cache to send.
        answers: With none to receive.
        sent: Prompts whose KV cache is sent.
        received: Answers whose KV cache was received.
    """

    mask: int
    prompts: float
    answers: float
    sent: float
    received: float
    is_slow: bool

    def at(self, price: float) -> float:
        """Return what it earns at most when a prompt costs ``price`` and an answer the rest."""
        return max(price * self.prompts, (1 - price) * self.answers)


class AllSplits:
    """The groups of a fog with the best of all their splits.

    Args:
        fog: Small enough that all its groupings were scored.
        groupings: These.
    """

    def __init__(self, fog: Fog, groupings: Groupings) -> None:
        self._fog = fog
        self._groupings = groupings
        self._groups: dict[int, _Group] = {}

    @cached_property
    def is_known(self) -> bool:
        """Whether all that depends on splits was searched, so that there is a ceiling."""
        everyone = (1 << self._fog.num_devices) - 1
        return self._fog.tries_all_splits(everyone)

    @cached_property
    def has_all_orders(self) -> bool:
        """Whether stages were tried in every order that makes a difference."""
        return self._fog.tries_all_orders((1 << self._fog.num_devices) - 1)

    def ceiling(self, groups: Sequence[int], score: Score) -> Ceiling:
        """Return what no plan exceeds that is no worse in what comes before requests per second.

        Args:
            groups: Those of the best plan found.
            score: Its own.
        """
        rate, is_first = 1 / max(score.objective_seconds, _LEAST), True
        before = (score.is_mixed, score.num_slow)
        price = self._price([self._group(mask) for mask in groups])
        ranked = []
        for masks in self._groupings.seen():
            grouping = [self._group(mask) for mask in masks]
            if before > (0, 0) or sum([g.at(price) for g in grouping]) > rate:
                ranked.append((_shared_rate(grouping), masks))
        for limit, masks in sorted(ranked, reverse=True):
            # What comes first is looked for until there is some of it, however little it serves.
            if limit <= rate * (1 + _LEAST) and (before == (0, 0) or not is_first):
                break
            for lead, found in self._candidates(masks, before, rate, is_first):
                is_first = is_first and lead >= before
                rate = max(rate, found)
        return Ceiling(rate, is_first)

    def rate(self, groups: Sequence[int], roles: Sequence[Role]) -> float:
        """Return what no plan with these groups and roles exceeds, in requests per second."""
        return _rate([self._group(mask) for mask in groups], roles)

    def _candidates(
        self, masks: Sequence[int], before: tuple[int, int], rate: float, is_first: bool
    ) -> Iterator[tuple[tuple[int, int], float]]:
        """Yield (mixed, slow) and the rate of roles with more of either than is known."""
        fog, rival = self._fog, self._groupings.rival
        grouping = [self._group(mask) for mask in masks]
        options = [option for mask in masks if (option := fog.options(mask)) is not None]
        usable = self._groupings.roles
        for roles in product(*allowed_roles(options, usable)):
            num_slow = sum(
                g.is_slow
                for g, role in zip(grouping, roles, strict=True)
                if role is not Role.PREFILL
            )
            is_mixed = usable is not Roles.MIXED and Role.BOTH in roles
            lead = (int(is_mixed), num_slow)
            found = _rate(grouping, roles)
            is_better = found > rate * (1 + _LEAST) or (is_first and lead < before and found > 0)
            if lead > before or not is_better:
                continue
            # What counts within targets says nothing of all that a plan serves.
            if rival is not None and not fog.objective.has_targets:
                times = self._times(grouping, roles, num_slow, found)
                if rival.must_leave_behind(times):
                    continue
            rate, is_first = max(rate, found), is_first and lead >= before
            yield lead, found

    def _times(
        self, grouping: Sequence[_Group], roles: Sequence[Role], num_slow: int, rate: float
    ) -> Times:
        prefills, decodes = [], []
        for group, role in zip(grouping, roles, strict=True):
            most = self._fog.most(group.mask)
            assert most is not None, "a group of a grouping holds the model"
            prompts, answers = group.prompts, group.answers
            if role is Role.BOTH:
                prompts = answers = prompts * answers / (prompts + answers)
            if role is not Role.DECODE:
                prefills.append(Part(most.ttft_seconds, prompts))
            if role is not Role.PREFILL:
                tokens = self._fog.workload.answer_tokens
                decodes.append(Part(tokens * most.tpot_seconds, answers))
        return Times(num_slow, 1 / rate, 1 / rate, prefills, decodes)

    def _group(self, mask: int) -> _Group:
        found = self._groups.get(mask)
        if found is None:
            found = self._groups[mask] = self._new_group(mask)
        return found

    def _new_group(self, mask: int) -> _Group:
        fog, work = self._fog, self._fog.workload
        options, most = fog.options(mask), fog.most(mask)
        assert options is not None, "a group of a grouping holds the model"
        assert most is not None, "a group of a grouping holds the model"
        prompts = most.prefill_rate / work.prompt_tokens
        answers = most.decode_rate / work.answer_tokens
        prompts *= any(role in options.roles for role in (Role.PREFILL, Role.BOTH))
        answers *= any(role in options.roles for role in (Role.DECODE, Role.BOTH))
        target = fog.objective.ttft_seconds
        if target is not None and len(work.prompt_shares) == 1:
            # No split is in time for a prompt, so none of them counts.
            prompts *= most.ttft_seconds <= target * (1 + ROUNDING)
        sent, received = prompts, answers
        if fog.objective.counts_kv:
            members = members_of(mask)
            sent = min(sent, 1 / max(least_send_seconds(fog, members), _LEAST))
            received = min(received, 1 / max(least_receive_seconds(fog, members), _LEAST))
        return _Group(mask, prompts, answers, sent, received, not options.decode.keeps_min_tps)

    @staticmethod
    def _price(grouping: Sequence[_Group]) -> float:
        """Return the price of a prompt at which a grouping earns least: then it serves so much."""
        prices = [g.answers / max(g.prompts + g.answers, _LEAST) for g in grouping]
        return min(prices, key=lambda price: sum(g.at(price) for g in grouping))


def _rate(grouping: Iterable[_Group], roles: Iterable[Role]) -> float:
    prompts = answers = 0.0
    shared = []
    for group, role in zip(grouping, roles, strict=True):
        if role is Role.PREFILL:
            prompts += group.sent
        elif role is Role.DECODE:
            answers += group.received
        elif group.prompts and group.answers:
            shared.append((group.prompts, group.answers))
        else:
            prompts, answers = prompts + group.prompts, answers + group.answers
    return balanced_rate(prompts, answers, shared) if shared else min(prompts, answers)


def _shared_rate(grouping: Sequence[_Group]) -> float:
    """Return what a grouping serves at most when every group may share its time."""
    return _rate(grouping, [Role.BOTH] * len(grouping))
