"""Rows of a group are taken apart by request."""

import torch

from broker.work import StepRow
from nodes.runs import runs_of


def row(name: str, position: int) -> StepRow:
    return StepRow(name, 0, position, 100 + position)


def test_rows_at_consecutive_positions_are_one_run() -> None:
    rows = [row("a", 4), row("b", 7), row("b", 8), row("b", 9), row("c", 8)]
    hidden = torch.arange(5.0)[:, None]

    runs = runs_of(rows, hidden)

    assert [run.rows for run in runs] == [rows[:1], rows[1:4], rows[4:]]
    assert [run.hidden.flatten().tolist() for run in runs if run.hidden is not None] == [
        [0], [1, 2, 3], [4],
    ]  # fmt: skip
    assert runs[1].without_proposed.rows == rows[1:2]


def test_rows_that_do_not_go_on_with_their_run_are_left_out() -> None:
    rows = [row("a", 4), row("a", 6), row("b", 1), row("a", 5), row("b", 2), row("b", 1)]
    assert [run.rows for run in runs_of(rows, None)] == [rows[:1], rows[2:3]]
