"""Tools over HTTP: into the template, out of the answer, whole, streamed and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api
from tests.support.model_folder import (
    CONFIG,
    EOS,
    TOOLS_TEMPLATE,
    ids_of,
    write_model_folder,
)
from tests.support.sse import events_of, numbered_events_of

CHAT = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}
QUESTION: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "7 + 5?"}],
    "tools": [TOOL],
}
ARGUMENTS = '{"a": 7, "b": 5}'
CALL = f'<tool_call>\n{{"name": "add", "arguments": {ARGUMENTS}}}\n</tool_call>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**CONFIG, "max_position_embeddings": 1024}
    return write_model_folder(
        tmp_path_factory.mktemp("tools"), template=TOOLS_TEMPLATE, config=config
    )


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(lambda generation: [*ids_of(f"Well.\n{CALL}"), EOS])


def prompt_of(api: Api, engine: FakeEngine, index: int = -1) -> str:
    assert api.slot.served is not None
    return api.slot.served.tokenizer.decode(engine.submitted[index].prompt_ids)


async def test_a_call_is_no_text(api: Api, engine: FakeEngine) -> None:
    choice = (await api.post(CHAT, QUESTION)).json()["choices"][0]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Well."
    [call] = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"] == {"name": "add", "arguments": ARGUMENTS}
    assert call["id"].startswith("call_")
    assert json.dumps(TOOL) in prompt_of(api, engine)


async def test_a_message_that_only_calls_has_no_content(api: Api, engine: FakeEngine) -> None:
    engine.script = lambda generation: [*ids_of(CALL), EOS]
    message = (await api.post(CHAT, QUESTION)).json()["choices"][0]["message"]
    assert message["content"] is None
    assert len(message["tool_calls"]) == 1


async def test_arguments_are_streamed(api: Api) -> None:
    chunks = events_of((await api.post(CHAT, {**QUESTION, "stream": True})).text)[:-1]

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Well."
    first, *others = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert (first["index"], first["type"], first["function"]["name"]) == (0, "function", "add")
    assert len(others) > 3
    assert not any("id" in call or "name" in call["function"] for call in others)
    told = first["function"]["arguments"] + "".join(c["function"]["arguments"] for c in others)
    assert told == ARGUMENTS
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_resumed_stream_has_the_same_calls_and_ids(api: Api, engine: FakeEngine) -> None:
    undisturbed = (await api.post(CHAT, {**QUESTION, "stream": True})).text
    first = engine.submitted[0]
    api.write_down(first, list(engine.script(first))[:45])

    response = await api.get(f"/fog/requests/{events_of(undisturbed)[0]['id']}")

    assert numbered_events_of(response.text) == numbered_events_of(undisturbed)


async def test_what_a_tool_said_goes_back_through_the_template(
    api: Api, engine: FakeEngine
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": ARGUMENTS}}
    messages = [
        *QUESTION["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12", "tool_call_id": "call_1"},
    ]
    await api.post(CHAT, {**QUESTION, "messages": messages})

    written = '<tool_call>{"name": "add", "arguments": {"a": 7, "b": 5}}</tool_call>'
    assert f"assistant:{written}tool:12assistant:" in prompt_of(api, engine)


@pytest.mark.parametrize(
    ("choice", "opening", "rest"),
    [
        ("required", '<tool_call>\n{"name": "', f'add", "arguments": {ARGUMENTS}}}'),
        (
            {"type": "function", "function": {"name": "add"}},
            '<tool_call>\n{"name": "add", "arguments":',
            f" {ARGUMENTS}}}",
        ),
    ],
    ids=["any", "named"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_must_be_a_call_begins_as_one(
    api: Api, engine: FakeEngine, choice: Any, opening: str, rest: str, stream: bool
) -> None:
    engine.script = lambda generation: [*ids_of(rest), EOS]
    response = await api.post(CHAT, {**QUESTION, "tool_choice": choice, "stream": stream})

    assert prompt_of(api, engine).endswith(f"assistant:{opening}")
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in events_of(response.text)[:-1]]
        calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    else:
        message = response.json()["choices"][0]["message"]
        calls = [call["function"] for call in message["tool_calls"]]
    assert calls[0]["name"] == "add"
    assert "".join(call["arguments"] for call in calls) == ARGUMENTS


async def test_without_tools_to_call_all_is_text(api: Api, engine: FakeEngine) -> None:
    changes: list[dict[str, Any]] = [{"tools": []}, {"tool_choice": "none"}]
    for change in changes:
        choice = (await api.post(CHAT, {**QUESTION, **change})).json()["choices"][0]
        assert choice["message"]["content"] == f"Well.\n{CALL}"
        assert choice["finish_reason"] == "stop"
        assert "add" not in prompt_of(api, engine)


async def test_a_choice_that_is_no_tool_is_refused(api: Api, engine: FakeEngine) -> None:
    choice = {"type": "function", "function": {"name": "subtract"}}
    response = await api.post(CHAT, {**QUESTION, "tool_choice": choice})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"


async def test_a_call_that_is_cut_off_ends_with_its_length(api: Api, engine: FakeEngine) -> None:
    choice = (await api.post(CHAT, {**QUESTION, "max_tokens": 55})).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
    assert arguments
    assert ARGUMENTS.startswith(arguments)
