"""What a group is worth when prompts and answers have a price. Pure.

The paper's measure, ``min(sum PS / N_P, sum DS / N_D)`` requests per second, does not add up
over groups: a grouping has to be scored as a whole. Its Lagrangian dual does: with a price
``x`` for a prompt and ``1 - x`` for an answer a group is worth what it earns in its better
phase, and at the right price the sum over groups is the measure, up to the role of one
group. That makes a local search over hundreds of groups cheap. Prices only guide it; what it
finds is compared by the objective itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Final, NamedTuple

from broker.plan import Role
from planner.flow import phase_rates
from planner.groupings.search import GroupTable
from planner.performance import Options
from planner.rival import Rival

# A replica that misses `min_tps` or a target still counts for something, where no other does
# better.
_MISSES: Final = 1e-3
_LEAST: Final = 1e-12


class Rates(NamedTuple):
    """Requests per second of a group in each phase; both 0 when the model does not fit."""

    prompts: float
    answers: float

    def at(self, price: float) -> float:
        """Return what the group earns when a prompt costs ``price`` and an answer the rest."""
        return max(price * self.prompts, (1 - price) * self.answers)


NOTHING: Final = Rates(0.0, 0.0)


class Worth:
    """Rates of the groups of one fog, each looked up once.

    Attributes:
        effort: What a search has cost so far, in a unit that does not depend on the machine:
            for each group looked up about the time that its evaluation takes, which grows
            faster than the number of its devices (0.1 ms, or a little more).
    """

    def __init__(self, table: GroupTable, rival: Rival | None = None, most: float = inf) -> None:
        """Begin without groups; those that leave a plan behind ``rival`` miss a target.

        No plan serves more than ``most`` requests per second.
        """
        self._table = table
        self._known: dict[int, Rates] = {0: NOTHING}
        self.effort = 0
        self._most_ttft = self._most_tpot = inf
        self._missing: set[int] = set()
        if rival is not None and rival.load is not None and not rival.times.num_slow:
            index = next(i for i, cost in enumerate(table.costs) if cost.id == rival.device)
            alone = table.options(1 << index)
            assert alone is not None, "a rival holds the model"
            # The slowest prefill and the slowest decode together may take so many times as
            # long as the rival; each of them alone is held to that.
            times = rival.most_times(most)
            self._most_ttft = times * alone.both.ttft_seconds
            self._most_tpot = times * alone.both.tpot_seconds

    def rates(self, group: int) -> Rates:
        """Return the requests per second of a group (a bit mask) in each phase."""
        found = self._known.get(group)
        if found is None:
            size = group.bit_count()
            self.effort += size * (size + 4) // 5
            found = NOTHING
            options = self._table.options(group)
            if options is not None:
                found = self._rates(options, group)
            self._known[group] = found
        return found

    def _rates(self, options: Options, group: int) -> Rates:
        table, prefill, decode = self._table, options.prefill, options.decode
        prompts, _ = phase_rates(prefill, table.workload)
        _, answers = phase_rates(decode, table.workload)
        prompts *= Role.PREFILL in options.roles
        answers *= Role.DECODE in options.roles
        if table.terms is not None and table.objective.counts_kv:
            prompts = min(prompts, 1 / max(prefill.send_seconds, _LEAST))
            answers = min(answers, 1 / max(decode.receive_seconds, _LEAST))
        if prefill.in_time:
            shares = zip(table.workload.prompt_shares, prefill.in_time, strict=True)
            prompts *= max(sum(share for (_, share), keeps in shares if keeps), _MISSES)
        is_late = prefill.ttft_seconds > self._most_ttft
        is_slow = not (decode.keeps_min_tps and decode.keeps_tpot)
        is_slow |= decode.tpot_seconds > self._most_tpot
        if is_late and is_slow:
            self._missing.add(group)
        prompts *= _MISSES if is_late else 1.0
        answers *= _MISSES if is_slow else 1.0
        return Rates(prompts, answers)

    def good_groups(self, groups: Sequence[int]) -> list[int]:
        """Return the groups that miss nothing in at least one phase."""
        for group in groups:
            self.rates(group)
        return [group for group in groups if group not in self._missing]

    def holds_model(self, group: int) -> bool:
        """Whether the model fits in a group."""
        return self.rates(group) != NOTHING


def balanced_price(rates: Iterable[Rates]) -> float:
    """Return the price of a prompt at which the groups earn least: both phases are equal.

    The minimum of a sum of maxima of lines lies where one group changes its better phase.
    """
    useful = [found for found in rates if found != NOTHING]
    by_price = sorted((found.answers / (found.prompts + found.answers), found) for found in useful)
    prompts, answers = 0.0, sum(found.answers for found in useful)
    for price, found in by_price:
        prompts += found.prompts
        answers -= found.answers
        if prompts >= answers:
            return price
    return 0.5
