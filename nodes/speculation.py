"""How many proposed ids go round the ring with a request's newest token: the master's choice. Pure.

The last stage proposes (`nodes.lookup`); the next step carries some of it as further rows of the
request, and the last stage takes each that it would have chosen itself. So speculation changes
when tokens come, never which. Whether it pays depends on how often a request's proposals come
true, which is seen without trying any (each token that comes says whether it was proposed), and
on what further rows cost at this batch size and way round the ring, which the plan's stage times
say (decision 0027).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker.work import RequestKey, StepResult, StepRow

MOST_PROPOSED: Final = 15
"""Ids that a step carries for one request beyond its own, unless settings say otherwise."""
_MOST_ROWS: Final = 24
"""Proposed rows of one group."""
_LEAST_CHANCE: Final = 0.1
"""A row that is less likely to be of use is not tried, whatever it costs by the plan."""
_MEMORY: Final = 0.9
"""Weight of what was seen one proposed id earlier, to what is seen now."""


@dataclass(slots=True)
class Tally:
    """Ids that were proposed and went round, and those of them that came true."""

    proposed: int = 0
    accepted: int = 0

    def add(self, other: Tally) -> None:
        """Count what another counted."""
        self.proposed += other.proposed
        self.accepted += other.accepted


@dataclass(slots=True)
class _Outlook:
    """A request's latest proposal, and how its earlier ones did.

    Attributes:
        hits, seen: Ids that came true and ids compared, both fading. The first id of a request
            is as likely as not to come true.
        num_sent: Ids of the proposal that went round.
        is_refused: Ids that came true were not run: some stage speaks an earlier minor version.
    """

    proposed: tuple[int, ...] = ()
    num_sent: int = 0
    is_refused: bool = False
    hits: float = 0.5
    seen: float = 1.0

    @property
    def chance(self) -> float:
        """How likely an id comes true when those before it did."""
        return self.hits / self.seen

    def compare(self, token_ids: Sequence[int]) -> None:
        """Take in the tokens that came in place of the proposal."""
        num_hits = 0
        for proposed, token_id in zip(self.proposed, token_ids, strict=False):
            is_hit = proposed == token_id
            self.hits = _MEMORY * self.hits + is_hit
            self.seen = _MEMORY * self.seen + 1
            if not is_hit:
                break
            num_hits += 1
        # Each id that went round and came true gives a token beside the step's own.
        self.is_refused |= len(token_ids) <= min(num_hits, self.num_sent)


@dataclass(slots=True)
class Speculation:
    """What is proposed for the requests of one replica.

    Attributes:
        most: Ids for one request and step; 0: none.
    """

    most: int = MOST_PROPOSED
    tally: Tally = field(default_factory=Tally)
    _outlooks: dict[RequestKey, _Outlook] = field(default_factory=dict)

    def take(self, results: Sequence[StepResult]) -> None:
        """A step of one request came back: some of what was proposed, and a new proposal."""
        last = results[-1]
        outlook = self._outlooks.setdefault(last.key, _Outlook())
        self.tally.add(Tally(outlook.num_sent, len(results) - 1))
        outlook.compare([result.token_id for result in results])
        outlook.proposed, outlook.num_sent = last.proposed_ids[: self.most], 0

    def forget(self, key: RequestKey) -> None:
        """A request is over."""
        self._outlooks.pop(key, None)

    def extended(
        self,
        rows: Sequence[StepRow],
        seconds: Callable[[int], float],
        take_room: Callable[[RequestKey, int], bool],
    ) -> list[StepRow]:
        """Return the rows of a group, each followed by those of its request that pay.

        Args:
            rows: One of each request.
            seconds: Time of a step of the group by the number of its rows.
            take_room: Takes KV room for so many positions of a request; False: there is none.
        """
        counts = self._counts([row.key for row in rows], seconds)
        found: list[StepRow] = []
        for row in rows:
            found.append(row)
            count = counts.get(row.key, 0)
            while count and not take_room(row.key, row.position + 1 + count):
                count -= 1
            if not count:
                continue
            outlook = self._outlooks[row.key]
            outlook.num_sent = count
            found += [
                StepRow(row.request_id, row.attempt, row.position + 1 + index, token_id)
                for index, token_id in enumerate(outlook.proposed[:count])
            ]
        return found

    def _counts(
        self, keys: Sequence[RequestKey], seconds: Callable[[int], float]
    ) -> dict[RequestKey, int]:
        """Return how many ids of each request make the group's tokens come fastest.

        The likeliest further rows first; of one request they are less likely one after the other.
        """
        chances: list[tuple[float, RequestKey]] = []
        for key in keys:
            outlook = self._outlooks.get(key)
            if outlook is None or outlook.is_refused:
                continue
            chance = 1.0
            for _ in outlook.proposed:
                chance *= outlook.chance
                if chance < _LEAST_CHANCE:
                    break
                chances.append((chance, key))
        if not chances:
            return {}
        # Stable, so that rows of one request stay in order and its requests keep theirs.
        chances.sort(key=lambda item: -item[0])
        tokens, best_count = float(len(keys)), 0
        best_rate = tokens / seconds(len(keys))
        for count, (chance, _) in enumerate(chances[:_MOST_ROWS], start=1):
            tokens += chance
            rate = tokens / seconds(len(keys) + count)
            if rate > best_rate:
                best_rate, best_count = rate, count
        counts: dict[RequestKey, int] = {}
        for _, key in chances[:best_count]:
            counts[key] = counts.get(key, 0) + 1
        return counts
