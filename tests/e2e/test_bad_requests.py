"""Wrong requests over HTTP: an error object that names the field, and the fog goes on."""

import json
from typing import Any

import httpx2
import pytest

from tests.support.running_fog import RunningFog

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.slow]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def post(fog: RunningFog, path: str, body: dict[str, Any] | bytes) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    return httpx2.post(fog.url + path, content=content, headers=headers, timeout=30)


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the error object; it has what OpenAI's has."""
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    return error


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"messages": [}', b"\xff\xfe\x00", b"[]", b'"prompt"', b"[" * 100_000],
    ids=["empty", "cut off", "not closed", "not UTF-8", "list", "text", "deep"],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_body_that_is_no_json_object_is_refused(fog: RunningFog, path: str, body: bytes) -> None:
    response = post(fog, path, body)

    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": "Hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "Hello"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"max_tokens": "12"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1_000_000}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 10_000}, "n"),
        ({"n": True}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": "x"}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_wrong_field_of_a_chat_is_named(
    fog: RunningFog, changes: dict[str, Any], param: str
) -> None:
    response = post(fog, CHAT, {"model": fog.model, "messages": HELLO, **changes})

    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    # The last part of the field stands in the sentence for a person as well.
    assert param.split(".")[-1] in error["message"]


@pytest.mark.parametrize(
    "prompt",
    [None, 7, [], [[]], [1, "two"], [-1], [10**9], [[1], "two"]],
    ids=json.dumps,
)
def test_a_wrong_prompt_of_a_completion_is_named(fog: RunningFog, prompt: object) -> None:
    response = post(fog, COMPLETIONS, {"model": fog.model, "prompt": prompt})

    assert response.status_code == 400
    assert error_of(response)["param"] == "prompt"


def test_a_prompt_longer_than_the_context_is_refused_with_the_limit(fog: RunningFog) -> None:
    limit = fog.plan()["context_tokens"]
    long_chat = [{"role": "user", "content": "seven plus five " * limit}]

    for path, field, prompt in (
        (COMPLETIONS, "prompt", [5] * (limit + 1)),
        (COMPLETIONS, "prompt", [5] * limit),
        (CHAT, "messages", long_chat),
    ):
        for stream in (False, True):
            response = post(fog, path, {"model": fog.model, field: prompt, "stream": stream})
            assert response.status_code == 400
            error = error_of(response)
            assert error["param"] == field
            assert error["code"] == "context_length_exceeded"
            assert str(limit) in error["message"]


def test_an_unknown_model_is_not_found(fog: RunningFog) -> None:
    for response in (
        post(fog, CHAT, {"model": "gpt-9", "messages": HELLO}),
        post(fog, COMPLETIONS, {"model": "gpt-9", "prompt": "Hello"}),
        httpx2.get(f"{fog.url}/v1/models/gpt-9"),
    ):
        assert response.status_code == 404
        error = error_of(response)
        assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_after_all_that_the_fog_answers_rightly_and_nothing_is_left_of_it(fog: RunningFog) -> None:
    assert "12" in fog.ask("What is 7 plus 5?").text

    details = httpx2.get(f"{fog.url}/readyz").json()["details"]
    assert (details["waiting"], details["running"]) == (0, 0)
