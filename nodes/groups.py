"""Decode groups of one replica, formed by its master alone. Pure.

Other stages run groups first in, first out, and never merge, split or wait. The master
admits rows, evens sizes and chooses the number of groups with the function that the planner
uses (`broker.grouping.best_grouping`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from broker.grouping import best_grouping
from broker.plan import Replica
from broker.work import RequestKey, StepResult, StepRow


@dataclass(slots=True)
class Group:
    """Rows on their way round the ring.

    Attributes:
        rows: As they were launched, with those that are proposed (`nodes.speculation`).
        pending: First rows of the requests whose token has not come back.
        waiting_since: When it was launched or last repeated.
    """

    number: int
    rows: list[StepRow]
    pending: dict[RequestKey, StepRow]
    launched_at: float
    waiting_since: float
    repeats: int = 0


@dataclass(slots=True)
class Groups:
    """Which rows wait at the master and which are in flight."""

    replica: Replica
    _waiting: OrderedDict[RequestKey, StepRow] = field(default_factory=OrderedDict)
    _in_flight: dict[int, Group] = field(default_factory=dict)
    _next_number: int = 0
    _round_seconds: float | None = None

    @property
    def num_rows(self) -> int:
        """Active rows, waiting or in flight."""
        return len(self._waiting) + sum(len(g.pending) for g in self._in_flight.values())

    @property
    def in_flight(self) -> list[Group]:
        """Groups in flight, oldest first."""
        return list(self._in_flight.values())

    def round_seconds(self) -> float:
        """Usual time of a group round the ring: measured, before that as predicted."""
        if self._round_seconds is not None:
            return self._round_seconds
        return best_grouping(self.replica.stages, max(self.num_rows, 1)).step_seconds

    def add(self, row: StepRow) -> None:
        """Let a row wait for the next group."""
        self._waiting[row.key] = row

    def remove(self, key: RequestKey) -> None:
        """Forget a row; a group whose last open row it was is over."""
        self._waiting.pop(key, None)
        for group in self.in_flight:
            if group.pending.pop(key, None) is not None and not group.pending:
                del self._in_flight[group.number]

    def launch(self, now: float) -> list[Group]:
        """Form groups from waiting rows while fewer than the best number are in flight."""
        launched: list[Group] = []
        while self._waiting:
            grouping = best_grouping(self.replica.stages, self.num_rows)
            if len(self._in_flight) >= grouping.num_groups:
                break
            count = min(self._even_size(grouping.num_groups), len(self._waiting))
            rows = [self._waiting.popitem(last=False)[1] for _ in range(count)]
            group = Group(self._next_number, rows, {row.key: row for row in rows}, now, now)
            self._next_number += 1
            self._in_flight[group.number] = group
            launched.append(group)
        return launched

    def _even_size(self, num_groups: int) -> int:
        """Return the size of the next group, so that sizes differ by at most one row.

        A row left over waits for a smaller group to come round, once.
        """
        smaller, num_larger = divmod(self.num_rows, num_groups)
        larger_in_flight = sum(len(g.pending) > smaller for g in self._in_flight.values())
        return max(smaller + int(larger_in_flight < num_larger), 1)

    def complete(
        self, number: int, results: list[StepResult], now: float
    ) -> list[list[StepResult]]:
        """Take in results of a group; return those that were awaited, each only once.

        By request: that of its first row, and those of the rows after it, in order.
        """
        group = self._in_flight.get(number)
        if group is None:
            return []
        accepted: dict[RequestKey, list[StepResult]] = {}
        for result in results:
            row = group.pending.get(result.key)
            if row is not None and row.position == result.position:
                del group.pending[result.key]
                accepted[result.key] = [result]
            elif result.key in accepted:
                known = accepted[result.key]
                if result.position == known[-1].position + 1:
                    known.append(result)
        if not group.pending:
            del self._in_flight[number]
            if not group.repeats:
                seconds = now - group.launched_at
                before = self._round_seconds
                self._round_seconds = seconds if before is None else 0.8 * before + 0.2 * seconds
        return list(accepted.values())
