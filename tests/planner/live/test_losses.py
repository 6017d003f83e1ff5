"""Devices that come and go get stages when they have stayed, later with every further loss."""

from __future__ import annotations

import pytest

from broker.control import DeviceState
from planner.live.events import BusDown, BusUp, StatusSeen
from planner.live.losses import WINDOW_SECONDS, Losses
from tests.planner import fogs
from tests.planner.live.harness import Bench, active


def lost(*times: float) -> Losses:
    losses = Losses()
    for then in times:
        losses = losses.after_loss(then).after_return(then)
    return losses


def serving() -> Bench:
    return Bench().connect().model().join(*"abcdef").run(12)


def flap(bench: Bench, name: str, times: int, seconds: float = 4.0) -> Bench:
    """Let a device leave and come back."""
    for _ in range(times):
        bench.leave(name).run(seconds)
        bench.join(name, session=bench.sessions[name] + 1).run(seconds)
    return bench


@pytest.mark.parametrize(("num_losses", "seconds"), [(0, 0), (1, 0), (2, 15), (3, 30), (4, 60)])
def test_each_loss_beyond_the_first_doubles_the_stay(num_losses: int, seconds: float) -> None:
    assert lost(*range(num_losses)).stay_seconds() == seconds


def test_no_stay_is_longer_than_five_minutes() -> None:
    assert lost(*range(100)).stay_seconds() == 300


def test_losses_are_forgotten() -> None:
    assert lost(0.0, 1.0, WINDOW_SECONDS + 0.5).stay_seconds() == 15
    assert lost(0.0, WINDOW_SECONDS).stay_seconds() == 0


def test_what_is_lost_waits_for_nothing_and_what_is_back_until_it_has_stayed() -> None:
    back = lost(0.0, 10.0)
    assert back.obstacle(24.9) == (
        "it was lost 2 times within 10 minutes; it gets stages when it has stayed for 15 s"
    )
    assert back.obstacle(25.0) is None
    assert back.after_loss(20.0).obstacle(20.0) is None


def test_a_device_that_was_restarted_once_gets_its_place_back_at_once() -> None:
    bench = flap(serving(), "a", 1)
    assert "a" in bench.aim()


def test_a_device_that_comes_and_goes_is_idle_until_it_has_stayed_and_the_plan_says_why() -> None:
    bench = flap(serving(), "a", 3)
    reason = "it was lost 3 times within 10 minutes; it gets stages when it has stayed for 30 s"
    assert active(bench)
    assert "a" not in bench.aim()
    assert [entry.reason for entry in bench.plan.idle if entry.device == "a"] == [reason]
    assert f"a is back: {reason}" in bench.decisions
    bench.run(20)
    assert "a" not in bench.aim()
    bench.run(10)
    assert "a" in bench.aim()
    assert bench.plan.trigger.startswith("a joined")


def test_a_device_that_leaves_every_twenty_seconds_moves_weights_three_times() -> None:
    bench = flap(serving(), "a", 12, seconds=10)
    first, *moves = [r for r in bench.history.decisions if r.outcome == "adopted"]
    assert first.version == 1
    # Away, back after its first loss, away again; after that it has never stayed long enough.
    assert len(moves) == 3


def test_naming_a_device_that_waits_moves_nothing() -> None:
    bench = flap(serving(), "a", 2)
    bench.leave("a").run(4)
    before, plan = dict(bench.assignments), bench.plan
    bench.join("a", session=bench.sessions["a"] + 1).run(4)
    assert bench.plan.version == plan.version + 1
    assert [r.id for r in bench.plan.replicas] == [r.id for r in plan.replicas]
    assert {name: (a.hold, a.prepare) for name, a in bench.assignments.items()} == {
        name: (a.hold, a.prepare) for name, a in before.items()
    }


def test_rather_a_plan_on_a_device_that_comes_and_goes_than_none() -> None:
    bench = Bench().connect().model().join("a", "b", memory_bytes=1_000_000).run(12)
    assert bench.devices() == {"a", "b"}
    flap(bench, "a", 3)
    assert active(bench)
    assert bench.problem is None
    assert bench.devices() == {"a", "b"}


def test_devices_that_were_away_with_their_broker_were_not_lost() -> None:
    bench = serving()
    for _ in range(3):
        bench.handle(BusDown())
        bench.run(2)
        bench.handle(BusUp())
        for name in "abcdef":
            bench.leave(name)
            bench.join(name, session=bench.sessions[name])
        bench.run(20)
    assert bench.control.knowledge.waiting(bench.now) == {}


def test_a_device_that_goes_to_sleep_is_not_lost() -> None:
    bench = serving()
    for session in range(2, 6):
        bench.handle(StatusSeen("a", fogs.status(session - 1, DeviceState.SLEEPING)))
        bench.run(4)
        bench.join("a", session=session).run(4)
    assert bench.control.knowledge.waiting(bench.now) == {}
    assert "a" in bench.aim()
