"""When no replica is left: what serves soonest comes first, what serves best beside it."""

from broker.control import Link
from tests.planner.live.harness import Bench, active

SLOW_LINK = Link(latency_seconds=0.0005, bytes_per_second=2e5)
"""Seconds for a few layers, where the others take milliseconds."""


def in_pairs() -> Bench:
    """Two devices that hold half of the model each, and none that holds all of it."""
    bench = Bench().connect().model().join("a", "b", seconds=0.001).run(8)
    assert bench.devices() == {"a", "b"}
    return bench


def replaced(bench: Bench) -> Bench:
    """Lose one half while a fast device on a slow link and a slower one come."""
    bench.leave("b").join("c", seconds=0.001, link=SLOW_LINK)
    return bench.join("d", seconds=0.0015)


def test_while_nobody_serves_the_device_that_loads_soonest_is_used_and_then_the_best_plan() -> None:
    bench = replaced(in_pairs()).run(20)

    (soonest, best) = [plan for plan in bench.plans if plan.version > 1 and plan.state == "active"]
    assert bench.devices(soonest) == {"a", "d"}
    assert bench.devices(best) == {"a", "c", "d"}
    assert "the running plan cannot go on without b (it is gone)" in soonest.trigger
    assert best.trigger.startswith("nobody served when this plan was made; ")
    assert "more requests per second" in best.trigger


def test_the_better_plan_is_looked_for_once() -> None:
    bench = replaced(in_pairs()).run(20)
    version = bench.plan.version

    bench.run(300, step=2)

    assert active(bench)
    assert bench.plan.version == version


def test_while_another_replica_serves_the_soonest_plan_is_no_better_than_the_best() -> None:
    bench = in_pairs().join("e", "f", seconds=0.001).run(8)
    assert len(bench.plan.replicas) == 2

    broken, _ = bench.plan.replicas
    bench.leave(broken.stages[0].device).join("c", seconds=0.001, link=SLOW_LINK)
    bench.join("d", seconds=0.0015).run(20)

    assert "c" in bench.devices()
    assert not any("nobody served" in decision.trigger for decision in bench.history.decisions)
