"""``/v1/responses``: items of text and calls, typed events, and responses nobody waits for."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.requests import GenerationFailedError, JournalUnavailableError, Written
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api
from tests.support.model_folder import CONFIG, EOS, ids_of, write_model_folder
from tests.support.sse import typed_events_of

PATH = "/v1/responses"
ARGUMENTS = '{"a": 7, "b": 5}'
CALL = f'<tool_call>\n{{"name": "add", "arguments": {ARGUMENTS}}}\n</tool_call>'
TEMPLATE = (
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for message in messages %}"
    "[{{ message.role }}:{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.id }}{{ call.function | tojson }}"
    "{% endfor %}]{% endfor %}"
)
CALLED = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**CONFIG, "max_position_embeddings": 1024}
    return write_model_folder(tmp_path_factory.mktemp("items"), template=TEMPLATE, config=config)


def prompt_of(api: Api, engine: FakeEngine) -> str:
    assert api.slot.served is not None
    return api.slot.served.tokenizer.decode(engine.submitted[-1].prompt_ids)


async def test_a_text_is_answered_by_a_message(api: Api, engine: FakeEngine) -> None:
    request = {"model": MODEL, "input": "7 + 5?", "instructions": "Be short.", "store": True}
    body = (await api.post(PATH, request)).json()

    assert (body["object"], body["status"], body["model"]) == ("response", "completed", MODEL)
    [item] = body["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert [part["text"] for part in item["content"]] == ["It is 12."]
    assert body["usage"]["output_tokens"] == 10
    assert (body["error"], body["incomplete_details"]) == (None, None)
    assert prompt_of(api, engine) == "[system:Be short.][user:7 + 5?]"


async def test_a_response_that_is_cut_off_says_so(api: Api) -> None:
    body = (await api.post(PATH, {"input": "x", "max_output_tokens": 3})).json()
    assert (body["status"], body["max_output_tokens"]) == ("incomplete", 3)
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"


async def test_items_of_a_conversation_become_messages(api: Api, engine: FakeEngine) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "7 + 5?"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Let me add."}],
        },
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": ARGUMENTS},
        {"type": "function_call", "call_id": "c2", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "12"},
    ]
    await api.post(PATH, {"input": items})

    calls = 'c1{"name": "add", "arguments": {"a": 7, "b": 5}}c2{"name": "add", "arguments": {}}'
    expected = f"[user:7 + 5?][assistant:Let me add.{calls}][tool:12]"
    assert prompt_of(api, engine) == expected


async def test_a_call_is_an_item_beside_the_text(api: Api, engine: FakeEngine) -> None:
    engine.script = lambda generation: [*ids_of(f"Well.\n{CALL}"), EOS]
    body = (await api.post(PATH, {"input": "7 + 5?", "tools": [TOOL]})).json()

    message, call = body["output"]
    assert message["content"][0]["text"] == "Well."
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "add", ARGUMENTS)
    assert call["call_id"].startswith("call_")
    assert body["tools"] == [TOOL]


async def test_events_are_typed_numbered_and_add_up_to_the_response(
    api: Api, engine: FakeEngine
) -> None:
    engine.script = lambda generation: [*ids_of(f"Well.\n{CALL}"), EOS]
    request = {"input": "7 + 5?", "tools": [TOOL], "stream": True}
    events = typed_events_of((await api.post(PATH, request)).text)

    names = [name for name, _ in events]
    assert names == [event["type"] for _, event in events]
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    assert list(dict.fromkeys(names)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.completed",
    ]
    said = dict.fromkeys(names, "")
    for name, event in events:
        said[name] += event.get("delta", "")
    assert said["response.output_text.delta"] == "Well."
    assert said["response.function_call_arguments.delta"] == ARGUMENTS
    done = [event["item"] for name, event in events if name == "response.output_item.done"]
    assert events[-1][1]["response"]["output"] == done


async def test_an_error_in_a_stream_is_its_last_event(api: Api, engine: FakeEngine) -> None:
    engine.error, engine.error_at = GenerationFailedError("a node failed"), 3
    events = typed_events_of((await api.post(PATH, {"input": "x", "stream": True})).text)
    assert events[-1][0] == "error"
    assert events[-1][1]["message"] == "a node failed"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"instructions": "x", "input": [CALLED, CALLED, {"role": "user"}]}, "input[2].content"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"input": "x" * 5000}, "input"),
        ({"temperature": 3}, "temperature"),
        ({"previous_response_id": "resp-1"}, "previous_response_id"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}},
         "text.format.schema"),
        ({"tools": [{"type": "function", "name": "f g"}]}, "tools[0].name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"stream": True, "background": True}, "stream"),
    ],
)  # fmt: skip
async def test_what_is_wrong_or_not_supported_is_named(
    api: Api, engine: FakeEngine, change: dict[str, Any], param: str
) -> None:
    response = await api.post(PATH, {"input": "x", **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert not re.search("max_completion|response_format|messages", error["message"])
    assert not engine.submitted


# --- in the background ---------------------------------------------------------------------


async def begun(api: Api, engine: FakeEngine) -> str:
    """Begin a response in the background that stands still after three tokens."""
    engine.hold_after = 3
    body = (await api.post(PATH, {"input": "7 + 5?", "background": True})).json()
    assert (body["status"], body["background"], body["output"]) == ("in_progress", True, [])
    await asyncio.wait_for(engine.holding.wait(), 10)
    response_id: str = body["id"]
    return response_id


def write_down(api: Api, engine: FakeEngine, num_tokens: int, status: str) -> None:
    first = engine.submitted[0]
    api.write_down(first, list(engine.script(first))[:num_tokens], status)


async def test_a_background_response_goes_on_alone_and_is_fetched(
    api: Api, engine: FakeEngine
) -> None:
    response_id = await begun(api, engine)
    write_down(api, engine, 3, "running")
    running = (await api.get(f"{PATH}/{response_id}")).json()
    engine.go_on.set()
    await asyncio.wait_for(engine.all_closed.wait(), 10)
    write_down(api, engine, 10, "finished")
    done = (await api.get(f"{PATH}/{response_id}")).json()

    assert (running["status"], running["output"]) == ("in_progress", [])
    assert (done["status"], done["id"]) == ("completed", response_id)
    assert done["output"][0]["content"][0]["text"] == "It is 12."
    assert len(engine.submitted) == 1


async def test_after_a_restart_whoever_asks_makes_it_go_on(api: Api, engine: FakeEngine) -> None:
    response_id = await begun(api, engine)
    write_down(api, engine, 3, "running")
    later = Api(FakeEngine(engine.script), api.settings)
    later.engine.journal = engine.journal

    found = (await later.get(f"{PATH}/{response_id}")).json()
    await asyncio.wait_for(later.engine.all_closed.wait(), 10)

    assert found["status"] == "in_progress"
    assert later.engine.submitted[0].generated == tuple(engine.script(engine.submitted[0]))[:3]
    engine.go_on.set()
    await asyncio.wait_for(engine.all_closed.wait(), 10)


async def test_a_cancelled_response_ends_its_work(api: Api, engine: FakeEngine) -> None:
    response_id = await begun(api, engine)
    write_down(api, engine, 3, "cancelled")

    body = (await api.post(f"{PATH}/{response_id}/cancel", {})).json()

    assert body["status"] == "cancelled"
    # The fog was not told to go on: the work was ended.
    assert engine.closed == [f"{response_id}-0"]


async def test_a_response_that_failed_says_why(api: Api, engine: FakeEngine) -> None:
    engine.error, engine.error_at = GenerationFailedError("a node failed"), 3
    body = (await api.post(PATH, {"input": "x", "background": True})).json()
    await asyncio.wait_for(engine.all_closed.wait(), 10)
    write_down(api, engine, 3, "failed")

    found = (await api.get(f"{PATH}/{body['id']}")).json()

    assert (found["status"], found["error"]["message"]) == ("failed", "a node failed")


async def test_without_a_journal_nothing_runs_in_the_background(
    api: Api, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(entry: str) -> Written | None:
        raise JournalUnavailableError("this gateway keeps no journal")

    monkeypatch.setattr(engine, "written", fail)
    response = await api.post(PATH, {"input": "x", "background": True})

    assert response.status_code == 503
    assert "journal" in response.json()["error"]["message"]
    assert not engine.submitted


@pytest.mark.parametrize("response_id", ["resp-1", "resp-" + "0" * 24, "respbg-" + "0" * 24])
async def test_an_unknown_response_is_not_found(api: Api, response_id: str) -> None:
    response = await api.get(f"{PATH}/{response_id}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "response_not_found"
