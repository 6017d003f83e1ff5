"""Inference over MQTT, over a fake engine: on the memory broker, and on real ones."""

import asyncio
import json
import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from broker.address import BrokerAddress
from broker.mqtt import MqttTransport
from broker.topics import PROMPT, REPLY, QoS
from broker.transport import Connected, Publication, Received
from gateway.access.keys import Scope
from gateway.requests import GenerationFailedError, NotReadyError, QueueFullError
from tests.support.bus import SITE, running_broker, wait_for
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api
from tests.support.model_folder import EOS, ids_of
from tests.support.prompts_site import (
    CHAT,
    MAX_BODY,
    ME,
    PATIENCE_SECONDS,
    PER_CLIENT,
    Site,
    prompts_of,
)
from tests.support.sse import events_of

# --- answers -------------------------------------------------------------------------------


async def test_a_prompt_needs_no_key_and_is_listed_as_its_clients(site: Site) -> None:
    await site.api.keys.create("boss", Scope.ADMIN)
    site.ask(CHAT)
    await site.reply()
    (listed,) = site.api.meter.requests({})
    assert (listed["caller"], listed["state"]) == (f"{ME} (MQTT)", "finished")


async def test_a_chat_is_answered_in_one_message(site: Site, engine: FakeEngine) -> None:
    site.ask({**CHAT, "request_id": "q1"})

    request_id, answer = await site.reply()

    assert request_id == "q1"
    over_http = (await site.api.post("/v1/chat/completions", CHAT)).json()
    assert answer["choices"] == over_http["choices"]
    assert answer["usage"] == over_http["usage"]
    assert set(answer) == set(over_http)
    assert engine.submitted[0].prompt_ids == engine.submitted[1].prompt_ids


async def test_a_text_is_completed_and_gets_a_request_id(site: Site) -> None:
    site.ask({"prompt": "7 + 5 = ", "max_tokens": 2})

    request_id, answer = await site.reply()

    assert request_id.startswith("req-")
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "It"


async def test_a_stream_has_the_chunks_of_http_and_then_a_summary(site: Site) -> None:
    site.ask({**CHAT, "request_id": "q1", "stream": True})

    *chunks, done = await site.replies()

    body = (await site.api.post("/v1/chat/completions", {**CHAT, "stream": True})).text
    events = [event for event in events_of(body) if event != "[DONE]"]
    varying = ("id", "created")
    assert [{k: v for k, v in chunk.items() if k not in varying} for chunk in chunks] == [
        {k: v for k, v in event.items() if k not in varying} for event in events
    ]
    num_prompt = len(site.api.engine.submitted[0].prompt_ids)
    assert done == {
        "done": True,
        "request_id": "q1",
        "id": chunks[0]["id"],
        "chunks": len(chunks),
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": 10,
            "total_tokens": num_prompt + 10,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_the_summary_of_several_choices_has_the_end_of_each(
    site: Site, engine: FakeEngine
) -> None:
    engine.script = lambda g: [*ids_of("x" * (1 + 3 * g.sampling.choice_index)), EOS]
    site.ask({"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "stream": True})

    done = (await site.replies())[-1]

    assert done["finish_reasons"] == ["stop", "length", "stop", "length"]
    assert done["finish_reason"] == "stop"
    # A prompt counts once, whatever n is.
    assert done["usage"]["prompt_tokens"] == 2
    assert done["usage"]["completion_tokens"] == 2 + 3 + 2 + 3


async def test_several_requests_run_at_once(site: Site, engine: FakeEngine) -> None:
    engine.hold_after = 1
    for name in ("a", "b", "c"):
        site.ask({**CHAT, "request_id": name})
    await until_submitted(engine, 3)
    assert site.prompts.details() == {"running": 3, "refused": {}}

    engine.go_on.set()

    answers = dict([await site.reply() for _ in range(3)])
    assert {name: a["choices"][0]["finish_reason"] for name, a in answers.items()} == {
        "a": "stop",
        "b": "stop",
        "c": "stop",
    }


async def until_submitted(engine: FakeEngine, count: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(engine.submitted) < count:
            await asyncio.sleep(0.005)


# --- cancelling, repeats, limits -----------------------------------------------------------


async def test_a_request_is_cancelled_by_its_id(site: Site, engine: FakeEngine) -> None:
    engine.hold_after = 1
    site.ask({**CHAT, "request_id": "q1", "stream": True})
    await engine.holding.wait()

    site.ask({"cancel": "q1"})

    last = (await site.replies())[-1]
    assert (last["status"], last["error"]["code"]) == (499, "cancelled")
    assert engine.closed == [engine.submitted[0].request_id]
    assert engine.completed == []
    assert site.prompts.details()["running"] == 0


async def test_a_client_cancels_all_that_it_has_open(site: Site, engine: FakeEngine) -> None:
    engine.hold_after = 1
    for name in ("a", "b"):
        site.ask({**CHAT, "request_id": name})
    site.ask(CHAT, client="somebody-else")
    await until_submitted(engine, 3)

    site.ask({"cancel": "*"})

    ends = dict([await site.reply() for _ in range(2)])
    assert {name: end["error"]["code"] for name, end in ends.items()} == {
        "a": "cancelled",
        "b": "cancelled",
    }
    assert site.prompts.details()["running"] == 1
    engine.go_on.set()


async def test_a_request_that_is_cancelled_before_it_starts_ends_too(site: Site) -> None:
    # Both are taken in before the event loop gives the task its first turn.
    site.prompts._take(received({**CHAT, "request_id": "q1"}))
    site.prompts._take(received({"cancel": "q1"}))

    assert (await site.replies())[-1]["error"]["code"] == "cancelled"
    assert site.prompts.details()["running"] == 0


def received(message: dict[str, Any], client: str = ME) -> Received:
    return Received(f"e2llm/v1/{SITE}/prompts/{client}", json.dumps(message).encode())


async def test_cancelling_what_has_ended_or_is_anothers_changes_nothing(
    site: Site, engine: FakeEngine
) -> None:
    engine.hold_after = 1
    site.ask({**CHAT, "request_id": "q1"})
    await engine.holding.wait()

    site.ask({"cancel": "q1"}, client="somebody-else")
    site.ask({"cancel": "never-was"})
    engine.go_on.set()

    assert (await site.reply())[1]["choices"][0]["finish_reason"] == "stop"
    assert site.silence() == []


async def test_a_prompt_that_arrives_twice_is_answered_once(site: Site, engine: FakeEngine) -> None:
    engine.hold_after = 1
    site.ask({**CHAT, "request_id": "q1"})
    site.ask({**CHAT, "request_id": "q1"})
    site.ask({"prompt": "after them", "request_id": "q2"})
    await until_submitted(engine, 2)

    engine.go_on.set()

    assert [(await site.reply())[0] for _ in range(2)] == ["q1", "q2"]
    assert len(engine.submitted) == 2


async def test_the_id_of_a_running_request_is_refused_without_disturbing_it(
    site: Site, engine: FakeEngine
) -> None:
    engine.hold_after = 1
    site.ask({**CHAT, "request_id": "q1"})
    await engine.holding.wait()

    refused = await site.error({"prompt": "another", "request_id": "q1"})

    assert (refused["status"], refused["error"]["param"]) == (409, "request_id")
    assert refused["request_id"] != "q1"
    engine.go_on.set()
    assert (await site.reply())[0] == "q1"


async def test_a_client_has_a_limit_of_its_own(site: Site, engine: FakeEngine) -> None:
    engine.hold_after = 1
    for number in range(PER_CLIENT):
        site.ask({**CHAT, "request_id": f"q{number}"})
    site.ask(CHAT, client="somebody-else")
    await until_submitted(engine, PER_CLIENT + 1)

    refused = await site.error({**CHAT, "request_id": "one-more"})

    assert (refused["status"], refused["request_id"]) == (429, "one-more")
    assert f"at most {PER_CLIENT}" in refused["error"]["message"]
    engine.go_on.set()
    for _ in range(PER_CLIENT):
        await site.reply()
    site.ask(CHAT)
    assert "choices" in (await site.reply())[1]


# --- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "status", "param"),
    [
        ({}, 400, "messages"),
        ({"messages": None}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({**CHAT, "prompt": "a"}, 400, "prompt"),
        ({**CHAT, "temperature": 3}, 400, "temperature"),
        ({**CHAT, "tools": [{}]}, 400, "tools[0].type"),
        ({**CHAT, "max_tokens": 1000}, 400, "max_tokens"),
        ({**CHAT, "model": "another"}, 404, "model"),
        ({**CHAT, "request_id": "a/b"}, 400, "request_id"),
        ({**CHAT, "request_id": "a+"}, 400, "request_id"),
        ({**CHAT, "request_id": "#"}, 400, "request_id"),
        ({**CHAT, "request_id": "a\u0001"}, 400, "request_id"),
        ({**CHAT, "request_id": "a" * 129}, 400, "request_id"),
        ({**CHAT, "request_id": ""}, 400, "request_id"),
        ({**CHAT, "request_id": 7}, 400, "request_id"),
        ({"cancel": ["q1"]}, 400, "cancel"),
        ({"cancel": "**"}, 400, "cancel"),
        ({"prompt": "x" * MAX_BODY}, 413, None),
        (b"[1]", 400, None),
        (b"\xff\xfe", 400, None),
        (b"[" * 1500, 400, None),
    ],
)
async def test_what_http_refuses_is_refused_with_the_same_object(
    site: Site, engine: FakeEngine, message: dict[str, Any] | bytes, status: int, param: str | None
) -> None:
    refused = await site.error(message)

    assert refused["status"] == status
    assert refused["error"]["param"] == param
    assert set(refused["error"]) == {"message", "type", "param", "code"}
    assert engine.submitted == []
    assert sum(site.prompts.details()["refused"].values()) == 1


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (NotReadyError("no plan is active", 7), 503, 7),
        (QueueFullError("256 requests wait", 3), 429, 3),
        (GenerationFailedError("the request failed three times"), 500, None),
    ],
)
async def test_what_the_fog_refuses_says_when_to_come_again(
    site: Site, engine: FakeEngine, error: Exception, status: int, retry: int | None
) -> None:
    engine.error = error

    refused = await site.error(CHAT)

    assert (refused["status"], refused.get("retry_after_seconds")) == (status, retry)
    assert refused["error"]["message"] == str(error)


async def test_before_there_is_a_model_the_answer_is_503(engine: FakeEngine, api: Api) -> None:
    api.slot.served = None
    site = Site(api)
    site.prompts.start()
    site.transport.connect()
    site.client.connect()

    refused = await site.error(CHAT)

    over_http = await api.post("/v1/chat/completions", CHAT)
    assert refused["status"] == over_http.status_code == 503
    assert refused["error"] == over_http.json()["error"]
    await site.prompts.stop()


async def test_an_error_in_the_middle_of_a_stream_is_its_last_message(
    site: Site, engine: FakeEngine
) -> None:
    engine.error, engine.error_at = GenerationFailedError("lost"), 3
    site.ask({**CHAT, "stream": True})

    *chunks, last = await site.replies()

    assert chunks
    assert last["error"]["code"] == "generation_failed"


async def test_a_bug_is_an_error_that_tells_nothing_of_it(
    site: Site, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.error = RuntimeError("secret detail")

    refused = await site.error(CHAT)

    assert (refused["status"], refused["error"]["message"]) == (500, "internal error")
    assert "a request over MQTT failed" in caplog.text


async def test_a_stop_ends_what_is_open_with_the_error_of_http(
    api: Api, engine: FakeEngine
) -> None:
    site = Site(api)
    site.prompts.start()
    site.transport.connect()
    site.client.connect()
    engine.hold_after = 1
    site.ask({**CHAT, "stream": True})
    await engine.holding.wait()

    await site.prompts.stop()

    last = (await site.replies())[-1]
    assert (last["status"], last["error"]["code"]) == (503, "stopping")
    assert engine.closed == [engine.submitted[0].request_id]


async def test_no_message_is_longer_than_the_broker_takes(site: Site, engine: FakeEngine) -> None:
    engine.script = lambda generation: ids_of("x" * 40)
    big = {"prompt": ["a"] * 16, "max_tokens": 40, "return_token_ids": True}

    refused = await site.error(big)
    assert (refused["status"], refused["error"]["code"]) == (500, "reply_too_large")
    assert "ask for a stream" in refused["error"]["message"]

    # An error quotes what the client sent, but not all of it.
    site.ask({**CHAT, "model": "m" * 1900})
    assert len((await site.reply())[1]["error"]["message"]) == 1000

    site.ask({**big, "stream": True})
    assert (await site.replies())[-1]["usage"]["completion_tokens"] == 16 * 40


# --- what is not answered ------------------------------------------------------------------


async def test_a_retained_prompt_is_not_answered_again_at_every_start(
    api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(api)
    site.client.connect()
    site.ask(CHAT, retained=True)
    site.prompts.start()
    site.transport.connect()
    site.ask({"prompt": "after it", "request_id": "q2"})

    assert (await site.reply())[0] == "q2"

    assert len(engine.submitted) == 1
    assert site.prompts.details()["refused"] == {"retained": 1}
    assert "without the retain flag" in caplog.text
    await site.prompts.stop()


@pytest.mark.parametrize("client", ["+", "#", "a b", "$SYS", "a\u0007", "x" * 129])
async def test_a_client_that_cannot_stand_in_a_topic_is_dropped(site: Site, client: str) -> None:
    site.transport.inbox.put(received(CHAT, client))
    site.ask({**CHAT, "request_id": "q2"})

    assert (await site.reply())[0] == "q2"
    assert site.prompts.details()["refused"] == {"invalid_client": 1}


async def test_garbage_is_logged_with_its_topic_a_few_times_and_always_counted(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        await site.error(b'{"prompt": "MARKER')

    lines = [r.getMessage() for r in caplog.records if "dropped a message" in r.getMessage()]
    assert len(lines) == 5
    assert all(f"prompts/{ME}" in line for line in lines)
    assert site.prompts.details()["refused"] == {"invalid_json": 20}
    assert "MARKER" not in caplog.text


async def test_neither_prompts_nor_answers_are_logged(
    site: Site, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    engine.script = lambda generation: [*ids_of("ANSWER"), EOS]

    for prompt in ({"prompt": "MARKER"}, {"prompt": "MARKER", "temperature": "MARKER"}):
        site.ask(prompt)
        await site.reply()

    assert "MARKER" not in caplog.text
    assert "ANSWER" not in caplog.text


async def test_readyz_counts_prompts_over_mqtt(site: Site, api: Api, engine: FakeEngine) -> None:
    await site.error({})

    api.app = api.make_app(site.prompts)
    details = (await api.get("/readyz")).json()["details"]

    assert details["prompts"] == {
        "running": 0,
        "refused": {"missing_required_parameter": 1},
    }


# --- a real broker -------------------------------------------------------------------------


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
def broker_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    if kind == "mosquitto":
        request.getfixturevalue("mosquitto_path")
    return kind


async def test_over_a_real_broker_with_the_rights_of_a_client(
    broker_kind: str, api: Api, tmp_path: Path
) -> None:
    with running_broker(broker_kind, tmp_path, gateways=["gw"], clients=[ME, "spy"]) as broker:
        gateway = MqttTransport(broker.address("gw"), "gw~prompts")
        prompts = prompts_of(api, gateway)
        prompts.start()
        gateway.connect()
        client = connected(broker.address(ME), "#")
        spy = connected(broker.address("spy"), "#")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not gateway.is_connected:
                await asyncio.sleep(0.01)

        # The spy may not ask in the name of another.
        topic = PROMPT.path(SITE, client=ME)
        stolen = json.dumps({**CHAT, "request_id": "stolen"}).encode()
        spy.publish(Publication(topic, stolen, PROMPT.qos))
        question = json.dumps({**CHAT, "request_id": "q1", "stream": True}).encode()
        client.publish(Publication(topic, question, PROMPT.qos))

        messages: list[dict[str, Any]] = []
        while not messages or not messages[-1].get("done"):
            found = await asyncio.to_thread(wait_for, client, Received)
            assert found.topic == REPLY.path(SITE, client=ME, request="q1")
            messages.append(json.loads(found.payload))
        assert "".join(text_of(chunk) for chunk in messages[:-1]) == "It is 12."
        assert messages[-1]["chunks"] == len(messages) - 1
        for transport in (client, spy):
            await asyncio.to_thread(transport.close)
        await prompts.stop()
    assert len(api.engine.submitted) == 1


def connected(address: BrokerAddress, request: str) -> MqttTransport:
    user = address.username
    assert user is not None
    transport = MqttTransport(address, user)
    transport.subscribe([(f"e2llm/v1/{SITE}/replies/{user}/{request}", QoS.AT_LEAST_ONCE)])
    transport.connect()
    wait_for(transport, Connected)
    return transport


def text_of(chunk: dict[str, Any]) -> str:
    text: str = chunk["choices"][0]["delta"].get("content") or ""
    return text


async def test_the_commands_of_the_documentation_get_an_answer(
    mosquitto_path: Path, api: Api, tmp_path: Path
) -> None:
    pub, sub = (shutil.which(name) for name in ("mosquitto_pub", "mosquitto_sub"))
    if pub is None or sub is None:
        pytest.skip("mosquitto_pub is not installed; on Debian: apt-get install mosquitto-clients")
    with running_broker("mosquitto", tmp_path, gateways=["gw"], clients=[ME]) as broker:
        gateway = MqttTransport(broker.address("gw"), "gw~prompts")
        prompts = prompts_of(api, gateway)
        prompts.start()
        gateway.connect()
        url = f"{broker.address(ME).url}/e2llm/v1/{SITE}"
        reader = await asyncio.create_subprocess_exec(
            *(sub, "-L", f"{url}/replies/{ME}/#", "-C", "1", "-F", "%t %p"), stdout=subprocess.PIPE
        )
        reading = asyncio.create_task(reader.communicate())
        async with asyncio.timeout(PATIENCE_SECONDS):
            # It does not say when it has subscribed; an answer before that is lost.
            while not reading.done():
                body = json.dumps({**CHAT, "request_id": "q1"})
                writer = await asyncio.create_subprocess_exec(
                    pub, "-L", f"{url}/prompts/{ME}", "-q", "1", "-m", body
                )
                assert await writer.wait() == 0
                await asyncio.wait({reading}, timeout=0.2)

        topic, _, text = (await reading)[0].decode().partition(" ")
        assert topic == f"e2llm/v1/{SITE}/replies/{ME}/q1"
        assert json.loads(text)["choices"][0]["message"]["content"] == "It is 12."
        assert json.loads(text)["model"] == MODEL
        await prompts.stop()
