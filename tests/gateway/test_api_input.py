"""Bad input: each case is a 4xx with an OpenAI error object that names the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api, settings_for
from tests.support.model_folder import CONTEXT, EOS, VOCABULARY, ids_of

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PROMPT = {"model": MODEL, "prompt": "hi"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(lambda generation: [*ids_of("ok"), EOS])


@pytest.fixture
def api(engine: FakeEngine, folder: Path, tmp_path: Path) -> Api:
    return Api(engine, settings_for(folder, tmp_path, max_choices=4, max_body_bytes=4096))


async def refusal(api: Api, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    response = await api.post(path, body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert isinstance(api.engine, FakeEngine)
    assert not api.engine.submitted
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b'{"messages": NaN}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 3000,
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_body_that_is_no_json_object_is_refused(api: Api, path: str, body: bytes) -> None:
    assert (await refusal(api, path, body))["code"] == "invalid_json"


CALL = {"function": {"name": "f", "arguments": "{}"}}
MESSAGE = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [MESSAGE, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
         "messages[0].tool_calls[0].function"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
         "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [
            {"function": {"name": "f", "arguments": "[1]"}}]}]},
         "messages[0].tool_calls[0].function.arguments"),
        # The template of this model refuses it.
        ({"messages": [MESSAGE, {"role": "system", "content": "x"}]}, "messages"),
        ({"model": 5}, "model"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"n": 1000}, "n"),
        ({"n": "2"}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": CONTEXT}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": CONTEXT}, "max_completion_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"the": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"logit_bias": {str(VOCABULARY): 1}}, "logit_bias"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}},
         "stream_options.include_usage"),
        ({"ignore_eos": "no"}, "ignore_eos"),
        ({"return_token_ids": 1}, "return_token_ids"),
        ({"user": 5}, "user"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
        # The template of this model knows no calls.
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"logprobs": 2}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ],
)  # fmt: skip
async def test_a_wrong_field_of_a_chat_is_named(
    api: Api, change: dict[str, Any], param: str
) -> None:
    error = await refusal(api, CHAT, {**QUESTION, **change})
    assert error["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [VOCABULARY]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": "x" * CONTEXT}, "prompt"),
        ({"prompt": [3] * CONTEXT}, "prompt"),
        ({"prompt": ["a"] * 5}, "prompt"),
        ({"prompt": ["a", "b"], "n": 3}, "n"),
        ({"max_tokens": 63}, "max_tokens"),
        ({"echo": "yes"}, "echo"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
    ],
)
async def test_a_wrong_field_of_a_completion_is_named(
    api: Api, change: dict[str, Any], param: str
) -> None:
    error = await refusal(api, TEXT, {**PROMPT, **change})
    assert error["param"] == param


async def test_errors_speak_of_json_and_not_of_our_types(api: Api) -> None:
    error = await refusal(api, CHAT, {**QUESTION, "stream": True, "stream_options": 1})
    assert error["message"] == "stream_options: must be an object"


async def test_a_missing_prompt_is_named(api: Api) -> None:
    error = await refusal(api, CHAT, {"model": MODEL})
    assert (error["param"], error["code"]) == ("messages", "missing_required_parameter")
    error = await refusal(api, TEXT, {"model": MODEL})
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")


async def test_a_prompt_longer_than_the_context_is_told_both_lengths(api: Api) -> None:
    message = {"role": "user", "content": "x" * 200}
    error = await refusal(api, CHAT, {"messages": [message]})
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    assert str(CONTEXT) in error["message"]
    assert "219 tokens" in error["message"]


async def test_an_unknown_model_is_not_found(api: Api) -> None:
    error = await refusal(api, CHAT, {**QUESTION, "model": "gpt-4"}, status=404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert MODEL in error["message"]


@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [
        ("functions", [{"name": "f"}], []),
        ("function_call", {"name": "f"}, "auto"),
        ("audio", {"voice": "x"}, None),
        ("modalities", ["audio"], ["text"]),
        ("best_of", 2, 1),
        ("suffix", "x", ""),
        ("stop_token_ids", [5], []),
        ("guided_json", {"type": "object"}, None),
        ("chat_template", "{{ 1 }}", None),
    ],
)
async def test_what_is_not_supported_is_refused_unless_it_changes_nothing(
    api: Api, name: str, value: Any, neutral: Any
) -> None:
    error = await refusal(api, CHAT, {**QUESTION, name: value})
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert (await api.post(CHAT, {**QUESTION, name: neutral})).status_code == 200


async def test_unknown_fields_and_nulls_are_ignored(api: Api, engine: FakeEngine) -> None:
    nulls = dict.fromkeys(("n", "temperature", "stop", "logit_bias", "seed", "max_tokens", "tools"))
    response = await api.post(CHAT, {**QUESTION, **nulls, "store": False, "metadata": {"a": "b"}})
    assert response.status_code == 200
    # The journal gets what this software knows, nothing else.
    assert "metadata" not in engine.submitted[0].body
    assert engine.submitted[0].body["messages"] == QUESTION["messages"]


async def test_a_body_over_the_limit_is_refused_before_it_is_read(api: Api) -> None:
    body = json.dumps({**PROMPT, "prompt": "x" * 5000}).encode()
    error = await refusal(api, TEXT, body, status=413)
    assert error["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", CHAT, 405), ("POST", "/v1/images/generations", 404)]
)
async def test_what_is_not_there_is_an_error_object(
    api: Api, method: str, path: str, status: int
) -> None:
    async with api.client() as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.headers["x-request-id"]
