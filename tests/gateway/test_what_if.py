"""``POST /fog/what-if``, from HTTP to the planner's answer, over an engine without a fog."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.codec import decode_control
from broker.control import DeviceState
from broker.plan import PlannerStatus
from broker.topics import WHAT_IF
from broker.transport import Publication
from broker.whatif import AddedDevice, Finding, WhatIf, WhatIfAnswer
from gateway.access.door import needed_scope
from gateway.access.keys import Scope
from gateway.questions import Questions
from gateway.requests import DeadlineExceededError, EngineError, NotReadyError
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api

PATH = "/fog/what-if"
READY = PlannerStatus(state=DeviceState.READY, session=1)


async def test_a_question_reaches_the_planner_and_its_answer_the_client(
    api: Api, engine: FakeEngine
) -> None:
    body = {
        "drop": ["a"],
        "slow": {"b": 2.0},
        "add": [{"id": "pi", "like": "raspberry-pi-5-8gb"}],
        "wait_seconds": 5,
    }

    response = await api.post(PATH, body)

    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["finding"], answer["reason"]) == ("impossible", "the model does not fit")
    assert "request_id" not in answer
    [asked] = engine.asked
    assert (asked.drop, asked.slow, asked.wait_seconds) == (["a"], {"b": 2.0}, 5)
    assert asked.add == [AddedDevice(id="pi", like="raspberry-pi-5-8gb")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"drop": "a"}, 400),
        ({"drop": ["a", "a"]}, 400),
        ({"slow": {"a": 0}}, 400),
        ({"add": [{"id": "pi"}]}, 400),
        ({"wait_seconds": 1e9}, 400),
        ({"drop": [f"d{i}" for i in range(65)]}, 400),
        ({"drop": ["x" * 20_000]}, 413),
    ],
)
async def test_a_body_that_is_wrong_is_refused_before_anybody_is_asked(
    api: Api, engine: FakeEngine, body: dict[str, Any], status: int
) -> None:
    response = await api.post(PATH, body)

    assert response.status_code == status
    assert engine.asked == []


@pytest.mark.parametrize(
    ("finding", "status"), [(Finding.REFUSED, 400), (Finding.BUSY, 503), (Finding.FAILED, 504)]
)
async def test_a_question_that_got_no_answer_is_an_error_with_its_reason(
    api: Api, engine: FakeEngine, finding: Finding, status: int
) -> None:
    reason = "drop: no device 'a' is there for this model"
    engine.found = WhatIfAnswer(request_id="", finding=finding, reason=reason)

    response = await api.post(PATH, {"drop": ["a"]})

    assert response.status_code == status
    assert "no device 'a'" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status"), [(NotReadyError("no planner"), 503), (DeadlineExceededError("late"), 504)]
)
async def test_without_a_planner_that_answers_there_is_an_error(
    api: Api, engine: FakeEngine, error: EngineError, status: int
) -> None:
    engine.unasked = error

    assert (await api.post(PATH, {})).status_code == status


def test_it_takes_an_admin_to_ask() -> None:
    assert needed_scope(PATH) is Scope.ADMIN


# --- one question on the bus ------------------------------------------------------------------


def questions() -> tuple[Questions, list[Publication]]:
    sent: list[Publication] = []
    return Questions("lab", "gw", sent.append), sent


async def test_a_question_goes_out_under_the_gateway_s_name_and_expires() -> None:
    waiting, sent = questions()

    asking = asyncio.create_task(waiting.ask(WhatIf(request_id="q", wait_seconds=7.0), READY))
    await asyncio.sleep(0)
    waiting.take(WhatIfAnswer(request_id="older", finding=Finding.PLANNED, reason=""))
    assert not asking.done()
    waiting.take(WhatIfAnswer(request_id="q", finding=Finding.PLANNED, reason="best"))

    assert (await asking).reason == "best"
    [message] = sent
    assert message.topic == WHAT_IF.path("lab", gateway="gw")
    assert decode_control(message.payload, WhatIf).request_id == "q"
    assert not message.retained
    assert message.properties.expiry_seconds == 12


async def test_a_second_question_waits_its_turn_by_coming_again() -> None:
    waiting, _ = questions()
    first = asyncio.create_task(waiting.ask(WhatIf(request_id="q"), READY))
    await asyncio.sleep(0)

    with pytest.raises(NotReadyError, match="another question"):
        await waiting.ask(WhatIf(request_id="r"), READY)

    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(waiting.ask(WhatIf(request_id="s"), READY))
    await asyncio.sleep(0)
    waiting.take(WhatIfAnswer(request_id="s", finding=Finding.PLANNED, reason=""))
    assert (await second).request_id == "s"


async def test_a_planner_that_says_nothing_is_not_waited_for_longer() -> None:
    waiting = Questions("lab", "gw", lambda message: None, margin_seconds=0.0)

    with pytest.raises(DeadlineExceededError, match="did not answer within"):
        await waiting.ask(WhatIf(request_id="q", wait_seconds=0.01), READY)


@pytest.mark.parametrize("planner", [None, PlannerStatus(state=DeviceState.LOST, session=1)])
async def test_nobody_is_asked_where_no_planner_is(planner: PlannerStatus | None) -> None:
    waiting, sent = questions()

    with pytest.raises(NotReadyError, match="no planner"):
        await waiting.ask(WhatIf(request_id="q"), planner)

    assert sent == []
