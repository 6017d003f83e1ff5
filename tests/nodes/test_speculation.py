"""The master lets proposed ids go round where that makes tokens come faster, and only there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.work import RequestKey, StepResult, StepRow
from nodes.speculation import Speculation, Tally

Seconds = Callable[[int], float]


def over_a_slow_link(rows: int) -> float:
    return 0.020 + 0.001 * rows


def on_one_device(rows: int) -> float:
    return 0.010 * rows


def row(name: str, position: int = 10) -> StepRow:
    return StepRow(name, 0, position, 1)


def results(name: str, tokens: Sequence[int], proposed: Sequence[int] = ()) -> list[StepResult]:
    found = [StepResult(name, 0, 10 + index, token) for index, token in enumerate(tokens)]
    last = found[-1]
    found[-1] = StepResult(name, 0, last.position, last.token_id, None, tuple(proposed))
    return found


def there_is_room(key: RequestKey, num_tokens: int) -> bool:
    return True


def extended(
    speculation: Speculation, *rows: StepRow, seconds: Seconds = over_a_slow_link
) -> list[int]:
    """Return the token ids of the group that goes round."""
    return [each.token_id for each in speculation.extended(rows, seconds, there_is_room)]


def after(hits: int, misses: int = 0, name: str = "q") -> Speculation:
    """Return what is known when so many proposed ids came true or did not."""
    speculation = Speculation()
    for token in [7] * hits + [8] * misses:
        speculation.take(results(name, [3], [7, 7, 7]))
        speculation.take(results(name, [token]))
    return speculation


def test_rows_follow_their_request_at_the_next_positions() -> None:
    speculation = after(hits=9)
    speculation.take(results("q", [3], [7, 8, 9]))
    found = speculation.extended([row("p"), row("q")], over_a_slow_link, there_is_room)
    assert [(each.request_id, each.position, each.token_id) for each in found] == [
        ("p", 10, 1), ("q", 10, 1), ("q", 11, 7), ("q", 12, 8), ("q", 13, 9),
    ]  # fmt: skip


def test_nothing_goes_round_where_nothing_is_proposed() -> None:
    assert extended(after(hits=9), row("q")) == [1]


def test_the_first_proposal_of_a_request_is_tried_where_the_way_round_is_long() -> None:
    speculation = Speculation()
    speculation.take(results("q", [3], [7, 8]))
    assert len(extended(speculation, row("q"))) > 1


def test_a_row_that_costs_as_much_as_a_step_is_not_tried() -> None:
    speculation = after(hits=9)
    speculation.take(results("q", [3], [7, 8]))
    assert extended(speculation, row("q"), seconds=on_one_device) == [1]


def test_proposals_that_do_not_come_true_end_and_begin_again_when_they_would_have() -> None:
    speculation = after(hits=0, misses=20)
    speculation.take(results("q", [3], [7, 8]))
    assert extended(speculation, row("q")) == [1]
    for _ in range(6):
        speculation.take(results("q", [7], [7, 8]))
    assert extended(speculation, row("q")) == [1, 7, 8]


def test_the_likelier_request_gets_the_rows() -> None:
    speculation = after(hits=20, name="q")
    for _ in range(20):
        speculation.take(results("p", [3], [7]))
        speculation.take(results("p", [8]))
    speculation.take(results("p", [3], [5, 5]))
    speculation.take(results("q", [3], [7, 8]))
    assert extended(speculation, row("p"), row("q")) == [1, 1, 7, 8]


def test_rows_that_find_no_room_stay_out() -> None:
    speculation = after(hits=20)
    speculation.take(results("q", [3], [7, 8, 9]))
    asked: list[int] = []

    def up_to_twelve(key: RequestKey, num_tokens: int) -> bool:
        asked.append(num_tokens)
        return num_tokens <= 12

    found = speculation.extended([row("q")], over_a_slow_link, up_to_twelve)
    assert [each.token_id for each in found] == [1, 7]
    assert asked == [14, 13, 12]


def test_a_ring_that_leaves_out_rows_that_would_have_come_true_gets_no_more_of_them() -> None:
    speculation = after(hits=20)
    speculation.take(results("q", [3], [7, 8]))
    assert extended(speculation, row("q")) == [1, 7, 8]
    speculation.take(results("q", [7], [8, 9]))
    assert extended(speculation, row("q")) == [1]


def test_what_went_round_and_what_came_true_are_counted() -> None:
    speculation = after(hits=20)
    speculation.take(results("q", [3], [7, 8, 9]))
    assert len(extended(speculation, row("q"))) == 4
    speculation.take(results("q", [7, 8, 4]))
    assert speculation.tally == Tally(proposed=3, accepted=2)


def test_switched_off_nothing_goes_round() -> None:
    speculation = Speculation(0)
    speculation.take(results("q", [3], [7, 8, 9]))
    assert extended(speculation, row("q")) == [1]


def test_a_request_that_ended_is_forgotten() -> None:
    speculation = after(hits=20)
    speculation.take(results("q", [3], [7, 8, 9]))
    speculation.forget(RequestKey("q", 0))
    assert extended(speculation, row("q")) == [1]
