"""What the planner decided lately, for log, bus and store. No I/O, no clock."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from broker.codec import encode_control
from broker.plan import PlanDecision, PlanHistory
from broker.topics import PLAN_HISTORY
from broker.transport import Publication

KEPT: Final = 50
"""Decisions on the bus; the store has more."""


class Decided(NamedTuple):
    """A decision in words, and as a record; what only tells of progress has none."""

    text: str
    record: PlanDecision | None = None


class History:
    """The latest decisions, this planner's and those of the one before.

    Attributes:
        fresh: What log and store have not seen yet; the shell takes it out.
        outcomes: How many decisions of this planner had each.
    """

    def __init__(self, site: str) -> None:
        self.fresh: list[Decided] = []
        self.outcomes: Counter[str] = Counter()
        self._site = site
        self._decisions: list[PlanDecision] = []
        self._is_published = True

    def add(self, text: str, record: PlanDecision) -> None:
        """Remember one more."""
        self.fresh.append(Decided(text, record))
        self.outcomes[record.outcome] += 1
        self._decisions = [*self._decisions, record][-KEPT:]
        self._is_published = False

    def note(self, text: str, at: float) -> None:
        """Remember what became of a plan, or why there is none; ``at`` is in UTC seconds."""
        self.add(text, PlanDecision(at=at, trigger="", outcome="none", reason=text))

    def tell(self, text: str) -> None:
        """Say what is awaited; log and store hear it, others have the planner's status."""
        self.fresh.append(Decided(text))

    def hear(self, history: PlanHistory | None) -> None:
        """Take over what another planner left; the own echo changes nothing."""
        known = self._decisions
        if history is None:
            self._is_published = not known
        elif history.decisions != known:
            own = [record for record in known if record not in history.decisions]
            self._decisions = [*history.decisions, *own][-KEPT:]
            self._is_published = self._decisions == history.decisions

    def republish(self) -> None:
        """The broker may have lost it."""
        self._is_published = not self._decisions

    def announce(self) -> list[Publication]:
        """Return the history when it is news."""
        if self._is_published:
            return []
        self._is_published = True
        topic = PLAN_HISTORY
        payload = encode_control(PlanHistory(decisions=self._decisions))
        return [Publication(topic.path(self._site), payload, topic.qos, topic.retained)]
