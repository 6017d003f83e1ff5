"""Answers under a load, and what is seen of the plan meanwhile; over a gateway without a fog."""

import time
from collections.abc import Iterator

import pytest

from fog.chaos.load import Load, answer_undisturbed, make_bodies
from fog.chaos.watch import Sight, Watch
from fog.client import FogClient
from tests.fog.fake_gateway import PLAN, Behaviour, serve


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
def url(behaviour: Behaviour) -> Iterator[str]:
    with serve(behaviour) as address:
        yield address


def test_bodies_differ_and_are_drawn_greedy_and_sampled() -> None:
    bodies = make_bodies("tiny", seed=3, max_tokens=50, sampled=0.25, count=8)

    assert bodies == make_bodies("tiny", seed=3, max_tokens=50, sampled=0.25, count=8)
    assert bodies != make_bodies("tiny", seed=4, max_tokens=50, sampled=0.25, count=8)
    assert sorted(body["temperature"] for body in bodies) == [0.0] * 6 + [0.8] * 2
    assert len({body["messages"][0]["content"] for body in bodies}) == 8
    assert {body["max_tokens"] for body in bodies} == {50}


def test_streams_ask_one_request_after_the_other_and_end_what_runs(url: str) -> None:
    done: list[int] = []
    jobs = answer_undisturbed(FogClient(url), make_bodies("tiny", 1, 3, 0.5, 4), done.append)
    load = Load(url, jobs, num_streams=3)

    load.start()
    time.sleep(0.3)
    hanging = load.stop()

    assert done == [1, 2, 3, 4]
    assert hanging == 0
    assert len(load.outcomes) >= 3
    for outcome in load.outcomes:
        assert outcome.answer is not None
        assert outcome.answer.token_ids == outcome.job.undisturbed.token_ids == [7, 8, 9]


def test_streams_stop_by_themselves_after_so_many_requests(url: str) -> None:
    jobs = answer_undisturbed(FogClient(url), make_bodies("tiny", 1, 3, 0.5, 2), lambda done: None)
    load = Load(url, jobs, num_streams=3, num_requests=5)

    load.start()
    hanging = load.wait(timeout_seconds=30)

    assert hanging == 0
    assert len(load.outcomes) == 5


def test_what_is_refused_for_good_and_what_fails_in_the_middle_is_lost(
    url: str, behaviour: Behaviour
) -> None:
    jobs = answer_undisturbed(FogClient(url), make_bodies("tiny", 1, 3, 0.5, 1), lambda done: None)
    behaviour.fail_in_stream = True
    load = Load(url, jobs, num_streams=1)

    load.start()
    load.stop()

    assert load.outcomes[0].answer is None
    assert "failed on every replica" in load.outcomes[0].error


def test_an_answer_that_breaks_off_is_read_on(url: str, behaviour: Behaviour) -> None:
    jobs = answer_undisturbed(FogClient(url), make_bodies("tiny", 1, 3, 0.5, 1), lambda done: None)
    behaviour.cut_after = [1]
    load = Load(url, jobs, num_streams=1)

    load.start()
    load.stop()

    answer = load.outcomes[0].answer
    assert answer is not None
    assert answer.token_ids == [7, 8, 9]
    # The client waits before it asks for the rest.
    assert answer.longest_pause_seconds >= 0.2


def test_the_watch_sees_which_devices_have_a_place(url: str) -> None:
    watch = Watch(FogClient(url), lambda: 7.0)

    watch.start()
    watch.stop()

    assert watch.sights == [Sight(7.0, 3, True, frozenset({"laptop", "pi"}))]
    assert watch.plan == PLAN
    assert watch.num_versions == 1


def test_a_new_plan_counts_when_it_does_without_the_device_in_time() -> None:
    watch = Watch(FogClient("http://127.0.0.1:1"))
    both, one = frozenset({"a", "b"}), frozenset({"b"})
    watch.sights = [
        Sight(0.0, 1, True, both),
        Sight(6.0, 2, False, one),
        Sight(7.5, 2, True, one),
        Sight(20.0, 3, True, both),
    ]

    assert watch.seconds_to_plan_without("a", 5.0, 30.0) == 2.5
    assert watch.seconds_to_plan_without("a", 5.0, 7.0) is None
    assert watch.seconds_to_plan_without("b", 5.0, 30.0) is None
    assert watch.seconds_to_plan_without("a", 8.0, 30.0) is None
