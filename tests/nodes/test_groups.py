"""Decode groups: the master alone forms them, evens them and counts each token once."""

from broker.grouping import best_grouping
from broker.plan import BatchSeconds, Role
from broker.work import RequestKey, StepResult, StepRow
from nodes.groups import Groups
from tests.support.pipeline import make_replica


def row(name: str, position: int = 10) -> StepRow:
    return StepRow(name, 0, position, 1)


def result(name: str, position: int = 10, token: int = 2) -> StepResult:
    return StepResult(name, 0, position, token)


def three_stages() -> Groups:
    return Groups(make_replica((1, 3, 5), ("a", "b", "c"), Role.DECODE))


def test_rows_are_spread_over_the_best_number_of_groups() -> None:
    groups = three_stages()
    for index in range(6):
        groups.add(row(f"q{index}"))
    launched = groups.launch(0.0)
    best = best_grouping(groups.replica.stages, 6)
    assert len(launched) == best.num_groups > 1
    assert max(len(group.rows) for group in launched) == best.group_rows
    assert groups.num_rows == 6


def test_a_result_counts_once_and_only_at_its_position() -> None:
    groups = three_stages()
    groups.add(row("q"))
    (group,) = groups.launch(0.0)
    assert groups.complete(group.number, [result("q", position=9)], 0.1) == []
    assert groups.complete(group.number, [result("q")], 0.1) == [[result("q")]]
    assert groups.complete(group.number, [result("q")], 0.1) == []
    assert groups.in_flight == []


def test_a_row_and_those_proposed_after_it_are_answered_together() -> None:
    groups = three_stages()
    groups.add(row("q"))
    (group,) = groups.launch(0.0)
    run = [result("q", position=position) for position in (10, 11, 12)]
    strays = [result("p", position=10), result("q", position=14)]
    assert groups.complete(group.number, [*run, *strays], 0.1) == [run]
    assert groups.in_flight == []


def test_a_group_is_over_when_its_last_row_was_removed() -> None:
    groups = three_stages()
    groups.add(row("q"))
    groups.launch(0.0)
    groups.remove(RequestKey("q", 0))
    assert groups.in_flight == []
    assert groups.num_rows == 0


def test_a_partial_result_leaves_the_rest_pending() -> None:
    replica = make_replica((5,), ("a",), Role.BOTH)
    groups = Groups(replica)
    for name in ("x", "y"):
        groups.add(row(name))
    (group,) = groups.launch(0.0)
    groups.complete(group.number, [result("x")], 0.1)
    assert list(group.pending) == [RequestKey("y", 0)]


def test_sizes_even_out_after_rows_finished() -> None:
    groups = three_stages()
    for index in range(9):
        groups.add(row(f"q{index}"))
    launched = groups.launch(0.0)
    for finished in launched[0].rows[1:]:
        groups.remove(finished.key)
    sizes = [len(group.pending) for group in groups.in_flight]
    assert max(sizes) - min(sizes) > 1
    for _ in range(4):
        for group in groups.in_flight:
            results = [result(r.request_id, r.position) for r in group.pending.values()]
            for (done,) in groups.complete(group.number, results, 1.0):
                groups.add(row(done.request_id, done.position + 1))
            groups.launch(1.0)
    sizes = [len(group.pending) for group in groups.in_flight]
    assert max(sizes) - min(sizes) <= 1


def test_the_measured_round_replaces_the_predicted_one() -> None:
    groups = three_stages()
    groups.add(row("q"))
    (group,) = groups.launch(5.0)
    predicted = groups.round_seconds()
    groups.complete(group.number, [result("q")], 7.0)
    assert groups.round_seconds() == 2.0 != predicted


def test_one_group_for_one_stage_and_never_more_groups_than_rows() -> None:
    single = make_replica((5,), ("a",), Role.BOTH).stages
    assert best_grouping(single, 8).num_groups == 1
    three = make_replica((1, 3, 5), ("a", "b", "c"), Role.DECODE).stages
    assert best_grouping(three, 1).num_groups == 1
    assert best_grouping(three, 2).num_groups <= 2


def test_grouping_maximises_the_formula_of_the_design() -> None:
    stages = make_replica((1, 3, 5), ("a", "b", "c"), Role.DECODE).stages
    chosen = best_grouping(stages, 7)

    def throughput(num_groups: int) -> float:
        rows = -(-7 // num_groups)
        low, high = BatchSeconds(1, 0.01), BatchSeconds(8, 0.02)
        seconds = low.seconds + (rows - 1) * (high.seconds - low.seconds) / 7
        return 7 / max(3 * seconds + 0.003, num_groups * seconds)

    assert abs(chosen.tokens_per_second - max(throughput(g) for g in range(1, 7))) < 1e-9
