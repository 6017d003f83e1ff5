"""Where replies over MQTT go, how long they are waited for, and which gateway gives them."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.transport import Properties
from gateway.claims import RedisClaims
from tests.support.bus import SITE
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.prompts_site import CHAT, ME, REPLIES, Site

# --- MQTT 5 ----------------------------------------------------------------------------------


async def test_every_reply_goes_to_the_response_topic_with_the_correlation_data(
    site: Site,
) -> None:
    site.ask({**CHAT, "stream": True}, response_topic=f"{REPLIES}lamp/now", correlation=b"\x07\xff")

    messages = [await site.message()]
    while "done" not in json.loads(messages[-1].payload):
        messages.append(await site.message())

    assert len(messages) > 5
    assert {message.topic for message in messages} == {f"{REPLIES}lamp/now"}
    assert {message.properties for message in messages} == {Properties(correlation=b"\x07\xff")}


async def test_an_error_goes_to_the_response_topic_too(site: Site) -> None:
    for prompt in ({"prompt": "a", "model": "another"}, b"no json"):
        site.ask(prompt, response_topic=f"{REPLIES}lamp", correlation=b"7")

        message = await site.message()

        assert message.topic == f"{REPLIES}lamp"
        assert message.properties.correlation == b"7"
        assert json.loads(message.payload)["done"] is True


@pytest.mark.parametrize(
    "topic",
    [
        f"e2llm/v1/{SITE}/replies/somebody-else/lamp",
        f"e2llm/v1/{SITE}/replies/{ME}",
        f"e2llm/v1/{SITE}/prompts/{ME}",
        f"e2llm/v1/elsewhere/replies/{ME}/lamp",
        REPLIES,
        f"{REPLIES}+",
        f"{REPLIES}#",
        f"{REPLIES}lamp//now",
        f"{REPLIES}../somebody-else/",
        "",
    ],
)
async def test_a_response_topic_outside_the_clients_own_replies_is_refused(
    site: Site, engine: FakeEngine, topic: str
) -> None:
    site.ask({**CHAT, "request_id": "q1"}, response_topic=topic)

    request_id, refused = await site.reply()

    assert request_id == refused["request_id"]
    assert (refused["status"], refused["error"]["param"]) == (400, "response_topic")
    assert engine.submitted == []


async def test_correlation_data_have_a_limit(site: Site) -> None:
    site.ask(CHAT, correlation=b"x" * 1025)
    assert (await site.reply())[1]["error"]["param"] == "correlation_data"
    site.ask(CHAT, correlation=b"x" * 1024)
    assert "choices" in (await site.reply())[1]


@pytest.mark.parametrize(
    ("field", "properties"),
    [({"expires_seconds": 0.01}, {}), ({"expires_seconds": 60}, {"expiry_seconds": 0})],
    ids=["in the body", "of MQTT 5"],
)
async def test_a_prompt_that_expires_ends_its_work(
    site: Site, engine: FakeEngine, field: dict[str, Any], properties: dict[str, Any]
) -> None:
    engine.hold_after = 1

    site.ask({**CHAT, **field, "stream": True}, **properties)

    last = (await site.replies())[-1]
    assert (last["status"], last["error"]["code"]) == (504, "expired")
    assert len(engine.closed) == len(engine.submitted)
    assert engine.completed == []
    assert site.prompts.details() == {"running": 0, "refused": {"expired": 1}}


async def test_a_prompt_that_does_not_expire_in_time_is_answered(site: Site) -> None:
    site.ask({**CHAT, "expires_seconds": 86400}, expiry_seconds=3600)
    assert "choices" in (await site.reply())[1]


@pytest.mark.parametrize("value", [0, -1, 86401, "10", True, [1]])
async def test_an_expiry_that_is_no_time_is_refused(site: Site, value: Any) -> None:
    refused = await site.error({**CHAT, "expires_seconds": value})
    assert (refused["status"], refused["error"]["param"]) == (400, "expires_seconds")


# --- several gateways ------------------------------------------------------------------------


@pytest.fixture
async def two_gateways(
    api: Api, folder: Path, tmp_path: Path, redis_url: str
) -> AsyncIterator[list[Site]]:
    """Two sites' gateways on one broker; the application is that of the first."""
    first = Site(api, RedisClaims(redis_url, SITE, "first"))
    other_api = Api(FakeEngine(api.engine.script), settings_for(folder, tmp_path))
    second = Site(other_api, RedisClaims(redis_url, SITE, "second"), first.broker)
    first.client.connect()
    for site in (first, second):
        site.prompts.start()
        site.transport.connect()
    yield [first, second]
    for site in (first, second):
        await site.prompts.stop()


async def test_one_of_two_gateways_answers_a_client_whatever_it_says(
    two_gateways: list[Site],
) -> None:
    site = two_gateways[0]
    names = [f"q{number}" for number in range(9)]

    answered = []
    for name in names:
        site.ask({**CHAT, "request_id": name})
        answered.append((await site.reply())[0])

    assert answered == names
    assert sorted(len(s.api.engine.submitted) for s in two_gateways) == [0, 9]
    assert site.silence() == []


async def test_a_request_is_cancelled_at_the_gateway_that_has_it(two_gateways: list[Site]) -> None:
    site = two_gateways[0]
    for each in two_gateways:
        each.api.engine.hold_after = 1
    site.ask({**CHAT, "request_id": "q1", "stream": True})
    await site.message()

    site.ask({"cancel": "q1"})

    assert (await site.replies())[-1]["error"]["code"] == "cancelled"


async def test_another_gateway_answers_as_soon_as_the_first_has_stopped(
    two_gateways: list[Site],
) -> None:
    site = two_gateways[0]
    site.ask(CHAT)
    await site.reply()
    [owner] = [each for each in two_gateways if each.api.engine.submitted]
    [other] = [each for each in two_gateways if each is not owner]

    await owner.prompts.stop()
    site.ask(CHAT)

    assert "choices" in (await site.reply())[1]
    assert len(other.api.engine.submitted) == 1


async def test_a_claim_that_fails_costs_one_message_only(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        async def take(self, client: str) -> bool:
            if not caplog.records:
                raise ValueError("unforeseen")
            return True

        async def stop(self) -> None:
            pass

    site = Site(api, Broken())
    site.prompts.start()
    site.transport.connect()
    site.client.connect()

    for name in ("lost", "q2"):
        site.ask({**CHAT, "request_id": name})

    assert (await site.reply())[0] == "q2"
    assert "could not be taken in" in caplog.text
    await site.prompts.stop()
