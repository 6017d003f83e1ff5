"""What would be planned if devices were other ones, and what keeps it from being carried out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import fakeredis
import pytest

from broker.codec import decode_control
from broker.topics import WHAT_IF, WHAT_IF_ANSWER
from broker.transport import Received
from broker.whatif import AddedDevice, Finding, WhatIf, WhatIfAnswer
from planner.live.side_search import Child, SideSearch, in_a_process
from planner.live.suppositions import Supposition, answer, unanswered
from tests.planner.live.harness import Bench
from tests.planner.live.planner_rig import SITE, Fog, store

PI = "raspberry-pi-5-8gb"


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Four devices, each with room for the whole model, with an active plan."""
    made = Bench().connect().model().join("a", "b", "c", "d")
    return made.run(10)


def asked(**changes: Any) -> WhatIf:
    return WhatIf(request_id="q", **changes)


def supposition(bench: Bench, **changes: Any) -> Supposition:
    return bench.control.supposition(asked(**changes), bench.now)


def found(bench: Bench, **changes: Any) -> WhatIfAnswer:
    return answer(supposition(bench, **changes))


def devices_of(answered: WhatIfAnswer) -> set[str]:
    assert answered.plan is not None
    return {stage.device for replica in answered.plan.replicas for stage in replica.stages}


def test_without_a_change_the_answer_is_the_plan_that_serves(bench: Bench) -> None:
    said = found(bench)

    assert (said.finding, said.keeps_replicas, said.moves) == (Finding.PLANNED, True, [])
    assert said.plan is not None
    assert [r.id for r in said.plan.replicas] == [r.id for r in bench.plan.replicas]
    assert said.before == said.plan.predicted


def test_a_device_that_is_gone_is_in_no_replica_and_the_plan_serves_less(bench: Bench) -> None:
    gone = sorted(bench.devices())[0]

    said = found(bench, drop=[gone])

    assert said.plan is not None
    assert said.before is not None
    assert gone not in devices_of(said)
    assert gone not in said.plan.reasons
    rate, before = said.plan.predicted.requests_per_second, said.before.requests_per_second
    assert rate is not None
    assert before is not None
    assert rate < before
    assert f"{gone} is gone" in said.plan.trigger


def test_a_device_like_one_of_the_fog_joins_and_has_to_load_its_layers(bench: Bench) -> None:
    said = found(bench, add=[AddedDevice(id="twin", like="a")])

    assert said.plan is not None
    assert "twin" in said.plan.reasons
    assert "twin" in devices_of(said)
    assert "twin" in {move.device for move in said.moves}
    assert all(move.num_bytes > 0 and move.seconds > 0 for move in said.moves)
    assert said.by_data_sheet == []


def test_a_device_of_the_catalogue_is_timed_by_its_data_sheet(bench: Bench) -> None:
    said = found(bench, add=[AddedDevice(id="pi", like=PI)])

    assert said.plan is not None
    assert "pi" in said.plan.reasons
    assert said.by_data_sheet == ["pi"]


def test_a_device_that_is_slower_makes_the_plan_slower(bench: Bench) -> None:
    fast, slow = found(bench), found(bench, slow=dict.fromkeys(sorted(bench.devices()), 4.0))

    assert fast.plan is not None
    assert slow.plan is not None
    assert slow.plan.predicted.requests_per_second is not None
    assert fast.plan.predicted.requests_per_second is not None
    ratio = slow.plan.predicted.requests_per_second / fast.plan.predicted.requests_per_second
    assert 0.2 < ratio < 0.5


def test_a_fog_that_no_device_is_left_of_holds_nothing(bench: Bench) -> None:
    said = found(bench, drop=["a", "b", "c", "d"])

    assert (said.finding, said.plan) == (Finding.IMPOSSIBLE, None)
    assert "no device is left" in said.reason
    assert said.before is not None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"drop": ["x"]}, "drop: no device 'x'"),
    ({"slow": {"x": 2.0}}, "slow: 'x' cannot be planned with"),
    ({"add": [AddedDevice(id="a", like=PI)]}, "there is a device 'a' already"),
    ({"add": [AddedDevice(id="e", like="abacus")]}, "no device 'abacus'"),
    ({"add": [AddedDevice(id="e", like="abacus")]}, PI),
    ({"add": [AddedDevice(id="e/f", like=PI)]}, "cannot be used in an MQTT topic"),
]


@pytest.mark.parametrize(("changes", "problem"), WRONG)
def test_a_question_that_makes_no_sense_is_refused_with_its_reason(
    bench: Bench, changes: dict[str, Any], problem: str
) -> None:
    said = found(bench, **changes)

    assert said.finding is Finding.REFUSED
    assert problem in said.reason


def test_asking_changes_nothing_of_the_fog(bench: Bench) -> None:
    before = list(bench.plans), dict(bench.assignments), list(bench.decisions)

    found(bench, drop=["a"], add=[AddedDevice(id="pi", like=PI)])
    bench.run(5)

    assert (bench.plans, bench.assignments, list(bench.decisions)) == before


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"drop": ["a", "a"]}, "changed twice: a"),
        ({"drop": ["a"], "slow": {"a": 2.0}}, "changed twice: a"),
        ({"slow": {"a": 0.0}}, "greater than 0"),
        ({"drop": [f"d{i}" for i in range(65)]}, "at most 64"),
        ({"wait_seconds": 1e6}, "wait_seconds"),
    ],
)
def test_a_question_outside_its_limits_does_not_exist(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        asked(**changes)


# --- over the bus -----------------------------------------------------------------------------


def answers(fog: Fog, gateway: str = "g") -> Callable[[], list[WhatIfAnswer]]:
    """Let a gateway listen; return what reads what it has heard so far."""
    fog.devices.subscribe([(WHAT_IF_ANSWER.path(SITE, gateway=gateway), WHAT_IF_ANSWER.qos)])
    heard: list[WhatIfAnswer] = []

    def read() -> list[WhatIfAnswer]:
        while not fog.devices.inbox.empty():
            event = fog.devices.receive(0)
            if isinstance(event, Received) and WHAT_IF_ANSWER.match(event.topic):
                heard.append(decode_control(event.payload, WhatIfAnswer))
        return heard

    return read


def until_answered(fog: Fog, read: Callable[[], list[WhatIfAnswer]]) -> None:
    """Let the planner step on until it answers; in real time, since a process computes."""
    for _ in range(6000):
        fog.service.step(0)
        if read():
            return
        time.sleep(0.01)
    raise AssertionError("the planner did not answer")


def test_a_gateway_s_question_is_answered_by_a_process_beside_the_live_plan() -> None:
    fog = Fog(store(None)).start().run(5)
    before = fog.plan
    read = answers(fog)

    fog.say(WHAT_IF, asked(drop=["a"], wait_seconds=60.0), gateway="g")
    until_answered(fog, read)

    [said] = read()
    assert said.finding is Finding.PLANNED, said.reason
    assert said.request_id == "q"
    assert said.seconds > 0
    assert "a" not in devices_of(said)
    assert fog.plan == before


def test_a_question_about_a_model_that_is_not_in_use_is_refused_at_once() -> None:
    fog = Fog(store(None)).start().run(5)
    read = answers(fog)

    fog.say(WHAT_IF, asked(model="other"), gateway="g")
    fog.run(1)

    [said] = read()
    assert said.finding is Finding.REFUSED
    assert "no model other is in use; in use: demo" in said.reason


def test_a_planner_without_the_lease_leaves_questions_to_the_one_that_leads() -> None:
    redis = fakeredis.FakeRedis(decode_responses=True)
    fog = Fog(store(redis)).start().run(5)
    idle = Fog(store(redis, 200), 200, fog.bus).run(3)
    read = answers(fog)

    fog.say(WHAT_IF, asked(model="other"), gateway="g")
    idle.service.step(0)
    assert read() == []
    fog.run(1)

    assert [said.finding for said in read()] == [Finding.REFUSED]


# --- one question at a time -------------------------------------------------------------------


class Desk:
    """A side search whose work ends when the test says so."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.given_up: list[bool] = []
        self.side = SideSearch(SITE, self._work)

    def _work(self, posed: Supposition, seconds: float, child: Child) -> WhatIfAnswer:
        assert self.release.wait(30)
        self.given_up.append(child.is_given_up)
        return unanswered(posed.asked, Finding.IMPOSSIBLE, "computed")

    def collected(self) -> list[WhatIfAnswer]:
        for _ in range(3000):
            if found := self.side.collect():
                return [decode_control(each.payload, WhatIfAnswer) for each in found]
            time.sleep(0.01)
        return []


def test_another_gateway_s_question_is_told_that_one_is_being_answered(bench: Bench) -> None:
    desk = Desk()
    assert desk.side.ask("g", supposition(bench)) == []

    [busy] = desk.side.ask("h", supposition(bench))

    assert busy.topic == WHAT_IF_ANSWER.path(SITE, gateway="h")
    assert decode_control(busy.payload, WhatIfAnswer).finding is Finding.BUSY
    desk.release.set()
    assert [said.reason for said in desk.collected()] == ["computed"]
    assert desk.side.ask("h", supposition(bench)) == []
    desk.side.close()


def test_a_gateway_s_newer_question_takes_the_place_of_its_older_one(bench: Bench) -> None:
    desk = Desk()
    desk.side.ask("g", supposition(bench))

    newer = bench.control.supposition(WhatIf(request_id="newer"), bench.now)
    [told] = desk.side.ask("g", newer)

    assert decode_control(told.payload, WhatIfAnswer).request_id == "q"
    desk.release.set()
    assert [said.request_id for said in desk.collected()] == ["newer"]
    desk.side.close()
    assert sorted(desk.given_up) == [False, True]


def test_a_search_that_takes_too_long_is_ended_and_said_to_be(bench: Bench) -> None:
    said = in_a_process(supposition(bench), 0.001, Child())

    assert said.finding is Finding.FAILED
    assert "longer than 0.001 s" in said.reason


def test_work_that_breaks_off_is_answered_all_the_same(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(posed: Supposition, seconds: float, child: Child) -> WhatIfAnswer:
        raise RuntimeError("a bug")

    side = SideSearch(SITE, broken)
    side.ask("g", supposition(bench))
    side.close()

    [told] = side.collect()
    assert decode_control(told.payload, WhatIfAnswer).finding is Finding.FAILED
    assert "a bug" in caplog.text
