"""The requests that a replica decodes: all get one token per round."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import isnan

from planner.simulation.attempts import Attempt


class Rows:
    """Decoding requests in the order in which they end.

    Rounds are counted from the start of the run; a row knows the round in which it began, so
    that a round costs nothing until somebody asks.

    Attributes:
        round: Rounds so far.
    """

    def __init__(self) -> None:
        self.round = 0
        # (round in which it ends, index of its request, attempt): a heap.
        self._rows: list[tuple[int, int, Attempt]] = []
        # Sum over rows of context - round, which rounds do not change.
        self._offsets = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def context(self) -> float:
        """Mean positions that the rows attend to in the next round."""
        return self.round + self._offsets / len(self._rows)

    @property
    def rounds_left(self) -> int:
        """Rounds until the first row ends."""
        return self._rows[0][0] - self.round

    def generated(self, rounds: int) -> list[int]:
        """Return what each row has generated in ``rounds`` rounds from now, most first."""
        now = self.round + rounds
        return sorted((now - attempt.start_round for _, _, attempt in self._rows), reverse=True)

    def add(self, attempt: Attempt, now: float) -> None:
        """Begin to decode an attempt."""
        attempt.start_round = self.round
        attempt.decode_start = now
        life = attempt.life
        if isnan(life.decode_start):
            life.decode_start = now
        self._offsets += attempt.prompt_tokens + 1 - self.round
        heappush(self._rows, (self.round + attempt.answer_tokens, life.index, attempt))

    def pop_ended(self, now: float) -> list[Attempt]:
        """Take out the rows that have all their tokens."""
        ended = []
        while self._rows and self._rows[0][0] <= self.round:
            ended.append(self._account(heappop(self._rows)[2], now))
        return ended

    def pop_youngest(self, now: float) -> Attempt:
        """Take out the row whose request came last."""
        youngest = max(self._rows, key=lambda row: row[1])
        self._rows.remove(youngest)
        heapify(self._rows)
        return self._account(youngest[2], now)

    def pop_all(self, now: float) -> list[Attempt]:
        """Take out every row."""
        taken = [self._account(attempt, now) for _, _, attempt in self._rows]
        self._rows = []
        return taken

    def _account(self, attempt: Attempt, now: float) -> Attempt:
        rounds = self.round - attempt.start_round
        self._offsets -= attempt.prompt_tokens + 1 - attempt.start_round
        life = attempt.life
        life.generated_tokens += rounds
        life.decode_tokens += rounds
        life.decode_seconds += now - attempt.decode_start
        return attempt
