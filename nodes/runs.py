"""Rows of a decode group by request: its newest token, and ids that are proposed after it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from broker.work import RequestKey, StepRow


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of one request at consecutive positions.

    Attributes:
        hidden: (len(rows), hidden_size); None at the first stage.
    """

    rows: list[StepRow]
    hidden: Tensor | None

    @property
    def key(self) -> RequestKey:
        """The request and attempt."""
        return self.first.key

    @property
    def first(self) -> StepRow:
        """The row of the newest token."""
        return self.rows[0]

    @property
    def proposed(self) -> list[StepRow]:
        """The other rows."""
        return self.rows[1:]

    @property
    def without_proposed(self) -> Run:
        """The first row alone."""
        return Run(self.rows[:1], None if self.hidden is None else self.hidden[:1])


def runs_of(rows: Sequence[StepRow], hidden: Tensor | None) -> list[Run]:
    """Return the runs of a group, in its order.

    A request has one run in a group; rows that come after it and do not go on with it are left out.

    Args:
        rows: Of the whole group.
        hidden: (len(rows), hidden_size), or None.
    """
    starts: dict[RequestKey, int] = {}
    found: list[tuple[int, int]] = []
    for index, row in enumerate(rows):
        start = starts.get(row.key)
        if start is None:
            starts[row.key] = index
            found.append((index, index + 1))
        elif found[-1] == (start, index) and row.position == rows[start].position + index - start:
            found[-1] = start, index + 1
    return [
        Run(list(rows[start:end]), None if hidden is None else hidden[start:end])
        for start, end in found
    ]
