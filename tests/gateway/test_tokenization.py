"""Texts to token ids and back, what is told of the model, and the document of all routes."""

from typing import Any

import pytest

from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api
from tests.support.model_folder import BOS, CONTEXT, TURN, VOCABULARY, ids_of, word_id


async def test_a_text_and_its_tokens_are_each_others(api: Api) -> None:
    body = {"model": MODEL, "prompt": "5 €", "return_token_strs": True}
    found = (await api.post("/tokenize", body)).json()
    text = (await api.post("/detokenize", {"tokens": found["tokens"]})).json()

    assert found["tokens"] == ids_of("5 €")
    assert (found["count"], found["max_model_len"]) == (5, CONTEXT)
    assert found["token_strs"][:2] == ["5", " "]
    assert text == {"prompt": "5 €"}


async def test_a_chat_has_the_tokens_that_it_would_be_prompted_with(
    api: Api, engine: FakeEngine
) -> None:
    messages = [{"role": "user", "content": "7 + 5?"}]
    found = (await api.post("/tokenize", {"messages": messages})).json()
    await api.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})

    assert tuple(found["tokens"]) == engine.submitted[0].prompt_ids
    assert found["token_strs"] is None


async def test_special_tokens_have_their_text(api: Api) -> None:
    found = await api.post("/detokenize", {"tokens": [BOS, TURN, word_id(" the")]})
    assert found.json() == {"prompt": "<s><turn> the"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [VOCABULARY]}, "tokens"),
        ("/detokenize", {"tokens": ["1"]}, "tokens[0]"),
    ],
)
async def test_a_wrong_field_is_named(
    api: Api, path: str, body: dict[str, Any], param: str
) -> None:
    response = await api.post(path, body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_embeddings_are_refused_in_clear(api: Api) -> None:
    response = await api.post("/v1/embeddings", {"input": "x"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "embeddings_not_supported"


async def test_the_model_is_described(api: Api) -> None:
    [card] = (await api.get("/v1/models")).json()["data"]
    assert (card["family"], card["weights"], card["kv_format"]) == ("llama", "float32", "float32")
    assert (card["vocabulary_size"], card["is_chat"]) == (VOCABULARY, True)
    assert card["revision"]


async def test_a_wrong_parameter_of_the_query_is_an_error_object(api: Api) -> None:
    response = await api.get("/fog/requests/chatcmpl-1?stream=perhaps")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stream"


async def test_the_document_names_the_statuses_that_routes_answer_with(api: Api) -> None:
    paths = (await api.get("/openapi.json")).json()["paths"]
    chat = set(paths["/v1/chat/completions"]["post"]["responses"])
    assert chat == {
        *("200", "400", "401", "403", "404", "409", "413", "429", "499", "500", "503", "504")
    }
    statuses = [set(one["responses"]) for each in paths.values() for one in each.values()]
    assert not any("422" in found for found in statuses)
