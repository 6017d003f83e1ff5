"""How far a request is in its replica, as the master knows it. Only the conductor writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from broker.work import FirstToken, Open, StepRow


@dataclass(slots=True)
class Prefill:
    """A prompt on its way through this replica.

    Attributes:
        next_start: First position that stage 0 has not run yet.
        acked: KV length of the last stage, as it reported or kept it.
    """

    open: Open
    next_start: int = 0
    acked: int = 0
    waiting_since: float = 0.0
    repeats: int = 0

    def moves(self, now: float) -> None:
        """It is no use to repeat anything yet."""
        self.waiting_since = now
        self.repeats = 0


@dataclass(slots=True)
class Admission:
    """A request whose KV is on its way into this replica."""

    open: Open
    alive_at: float
    asked_at: float
    token: FirstToken | None = None
    complete: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Complete:
    """A request that has all it needs but a row.

    Attributes:
        row: Its first decode step.
        said_at: When its gateway was told last.
    """

    open: Open
    row: StepRow
    said_at: float = -inf
