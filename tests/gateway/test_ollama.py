"""Ollama's routes: what tools that speak nothing else send and read."""

import json
from typing import Any

import pytest

from gateway.requests import GenerationFailedError, QueueFullError
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api
from tests.support.model_folder import CHAT_TEMPLATE, CONTEXT

QUESTION: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "7 + 5?"}]}


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_a_chat_is_streamed_in_lines_unless_told_otherwise(api: Api) -> None:
    response = await api.post("/api/chat", QUESTION)
    *lines, last = lines_of(response.text)

    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert "".join(line["message"]["content"] for line in lines) == "It is 12."
    assert {line["message"]["role"] for line in lines} == {"assistant"}
    assert not any(line["done"] for line in lines)
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 10)
    assert last["total_duration"] >= last["eval_duration"] >= 0
    assert last["model"] == MODEL


async def test_a_whole_chat_has_text_and_counts(api: Api, engine: FakeEngine) -> None:
    body = (await api.post("/api/chat", {**QUESTION, "stream": False})).json()

    assert body["message"] == {"role": "assistant", "content": "It is 12."}
    assert (body["done"], body["done_reason"]) == (True, "stop")
    assert body["prompt_eval_count"] == len(engine.submitted[0].prompt_ids)


async def test_a_prompt_is_a_message_or_raw_a_text(api: Api, engine: FakeEngine) -> None:
    prompt = {"model": f"{MODEL}:latest", "prompt": "hi", "stream": False}
    told = await api.post("/api/generate", {**prompt, "system": "Be short."})
    raw = await api.post("/api/generate", {**prompt, "raw": True})

    assert api.slot.served is not None
    tokenizer = api.slot.served.tokenizer
    asked = [tokenizer.decode(each.prompt_ids, keep_special=True) for each in engine.submitted]
    assert asked == ["<s><turn>system\nBe short.\n<turn>user\nhi\n<turn>assistant\n", "hi"]
    assert told.json()["response"] == raw.json()["response"] == "It is 12."
    # A text ends with the model or the context, not after sixteen tokens.
    assert engine.submitted[1].max_tokens == CONTEXT - 2


async def test_a_streamed_prompt_is_answered_in_lines(api: Api) -> None:
    response = await api.post("/api/generate", {"model": MODEL, "prompt": "hi"})
    *lines, last = lines_of(response.text)
    assert "".join(line["response"] for line in lines) == "It is 12."
    assert (last["response"], last["done_reason"]) == ("", "stop")


async def test_options_become_parameters(api: Api, engine: FakeEngine) -> None:
    options = {
        "temperature": 0.5,
        "top_k": 20,
        "repeat_penalty": 1.5,
        "seed": 3,
        "num_predict": 4,
        "num_ctx": 2048,
        "stop": ["x"],
    }
    body = (await api.post("/api/chat", {**QUESTION, "options": options, "stream": False})).json()

    sampling = engine.submitted[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 20, 3)
    assert sampling.repetition_penalty == 1.5
    assert engine.submitted[0].max_tokens == 4
    assert body["done_reason"] == "length"


async def test_an_empty_prompt_loads_the_model(api: Api, engine: FakeEngine) -> None:
    chat = (await api.post("/api/chat", {"model": MODEL, "messages": []})).json()
    text = (await api.post("/api/generate", {"model": MODEL})).json()

    assert (chat["done"], chat["done_reason"], text["done_reason"]) == (True, "load", "load")
    assert not engine.submitted


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"format": "xml"}, "format"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"think": True}, "think"),
        ({"messages": [{"role": "user", "content": "x", "images": ["..."]}]}, "messages[0].images"),
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"num_predict": 0}}, "num_predict"),
        ({"options": {"temperature": "hot"}}, "options.temperature: "),
        ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty: "),
        ({"options": {"num_predict": 10**6}}, "options.num_predict is 1000000"),
        ({"options": 5}, "options"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"model": None}, "model"),
    ],
)
async def test_what_is_wrong_or_not_supported_is_named_in_ollamas_words(
    api: Api, engine: FakeEngine, change: dict[str, Any], name: str
) -> None:
    response = await api.post("/api/chat", {**QUESTION, **change})
    assert response.status_code == 400
    assert name in response.json()["error"]
    assert not engine.submitted


@pytest.mark.parametrize("path", ["/api/chat", "/api/show", "/api/generate"])
async def test_another_model_is_not_found(api: Api, path: str) -> None:
    response = await api.post(path, {**QUESTION, "model": "llama3", "prompt": "x"})
    assert response.status_code == 404
    assert "llama3" in response.json()["error"]


async def test_errors_before_and_in_a_stream_are_ollamas(api: Api, engine: FakeEngine) -> None:
    engine.error = QueueFullError("the queue is full", 7)
    refused = await api.post("/api/chat", QUESTION)
    engine.error, engine.error_at = GenerationFailedError("a node failed"), 3
    failed = await api.post("/api/chat", QUESTION)

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    assert refused.json() == {"error": "the queue is full"}
    assert failed.status_code == 200
    assert lines_of(failed.text)[-1] == {"error": "a node failed"}


async def test_the_model_is_listed_and_shown(api: Api) -> None:
    [tag] = (await api.get("/api/tags")).json()["models"]
    shown = (await api.post("/api/show", {"model": MODEL})).json()

    assert (tag["name"], tag["details"]["family"]) == (MODEL, "llama")
    assert tag["size"] > 0
    assert shown["template"] == CHAT_TEMPLATE
    assert shown["model_info"]["llama.context_length"] == CONTEXT
    assert (await api.get("/api/version")).json()["version"]


async def test_a_model_that_is_served_need_not_be_pulled(api: Api) -> None:
    pulled = await api.post("/api/pull", {"model": f"{MODEL}:latest"})
    unknown = await api.post("/api/pull", {"model": "llama3"})

    assert lines_of(pulled.text) == [{"status": "success"}]
    assert unknown.status_code == 404
    assert "llama3" in unknown.json()["error"]


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings"])
async def test_embeddings_are_refused_in_ollamas_words(api: Api, path: str) -> None:
    response = await api.post(path, {"model": MODEL, "input": "hello"})

    assert response.status_code == 400
    assert "embeddings are not supported" in response.json()["error"]
