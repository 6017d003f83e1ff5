"""Log probabilities and echoes in both of OpenAI's forms, whole, streamed and resumed."""

from typing import Any

import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models

from broker.events import Logprobs
from gateway.text import Tokenizer
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api
from tests.support.model_folder import EOS, build_tokenizer, ids_of, word_id
from tests.support.sse import events_of, numbered_events_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "7 + 5?"}]}
EURO = "\N{EURO SIGN}"
BROKEN = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine(lambda generation: [*ids_of(f"5{EURO}"), word_id(" is"), EOS])
    engine.logprobs = lambda token_id: Logprobs(
        -token_id / 8, ((ids_of("a")[0], -0.25), (token_id, -token_id / 8))
    )
    return engine


async def test_a_chat_tells_each_token_with_its_bytes_and_the_likeliest_ones(
    api: Api, engine: FakeEngine
) -> None:
    body = (await api.post(CHAT, {**QUESTION, "logprobs": True, "top_logprobs": 2})).json()

    assert engine.submitted[0].sampling.top_logprobs == 2
    content = body["choices"][0]["logprobs"]["content"]
    # The end token is no part of the text.
    assert [entry["token"] for entry in content] == ["5", BROKEN, BROKEN, BROKEN, " is"]
    told = bytes(byte for entry in content for byte in entry["bytes"])
    assert told.decode() == body["choices"][0]["message"]["content"]
    five = -ids_of("5")[0] / 8
    assert content[0] == {
        "token": "5",
        "logprob": five,
        "bytes": [53],
        "top_logprobs": [
            {"token": "a", "logprob": -0.25, "bytes": [97]},
            {"token": "5", "logprob": five, "bytes": [53]},
        ],
    }


async def test_without_the_option_nothing_is_told_or_computed(api: Api, engine: FakeEngine) -> None:
    for extra in ({}, {"logprobs": False}, {"logprobs": False, "top_logprobs": 0}):
        body = (await api.post(CHAT, {**QUESTION, **extra})).json()
        assert body["choices"][0]["logprobs"] is None
    assert {each.sampling.top_logprobs for each in engine.submitted} == {None}


async def test_a_stream_tells_the_same_as_a_whole_answer(api: Api) -> None:
    options = {**QUESTION, "logprobs": True, "top_logprobs": 1}
    whole = (await api.post(CHAT, options)).json()["choices"][0]["logprobs"]
    chunks = events_of((await api.post(CHAT, {**options, "stream": True})).text)[:-1]

    told = [chunk["choices"][0].get("logprobs") for chunk in chunks]
    assert [entry for each in told if each for entry in each["content"]] == whole["content"]


async def test_a_completion_tells_four_lists(api: Api, engine: FakeEngine) -> None:
    body = (await api.post(TEXT, {"prompt": "what", "logprobs": 1})).json()

    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["5", BROKEN, BROKEN, BROKEN, " is"]
    assert logprobs["text_offset"] == [0, 1, 1, 1, 2]
    assert logprobs["token_logprobs"][0] == -ids_of("5")[0] / 8
    assert logprobs["top_logprobs"][0] == {"a": -0.25, "5": -ids_of("5")[0] / 8}
    assert engine.submitted[0].sampling.top_logprobs == 1


async def test_a_streamed_completion_tells_the_same_in_pieces(api: Api) -> None:
    options = {"prompt": "what", "logprobs": 0}
    whole = (await api.post(TEXT, options)).json()["choices"][0]["logprobs"]
    chunks = events_of((await api.post(TEXT, {**options, "stream": True})).text)[:-1]

    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for name, values in whole.items():
        assert [value for each in told if each for value in each[name]] == values


@pytest.mark.parametrize("num_known", [0, 2, 6])
async def test_a_resumed_stream_tells_what_the_journal_has(
    api: Api, engine: FakeEngine, num_known: int
) -> None:
    options = {**QUESTION, "logprobs": True, "top_logprobs": 1, "stream": True}
    undisturbed = (await api.post(CHAT, options)).text
    first = engine.submitted[0]
    ids = list(engine.script(first))[:num_known]
    api.write_down(first, ids, logprobs=map(engine.logprobs, ids))

    answer_id = events_of(undisturbed)[0]["id"]
    response = await api.get(f"/fog/requests/{answer_id}")

    assert numbered_events_of(response.text) == numbered_events_of(undisturbed)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_comes_before_each_choice_and_is_searched_for_no_stop_string(
    api: Api, engine: FakeEngine, stream: bool
) -> None:
    engine.script = lambda g: [*ids_of("+x"), EOS]
    options = {"prompt": ["1+2", "3+4"], "n": 2, "echo": True, "stop": "x", "stream": stream}
    response = await api.post(TEXT, options)

    bodies: list[Any] = events_of(response.text)[:-1] if stream else [response.json()]
    texts = dict.fromkeys(range(4), "")
    for body in bodies:
        for choice in body["choices"]:
            texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == ["1+2+", "1+2+", "3+4+", "3+4+"]


async def test_token_ids_are_echoed_as_text(api: Api) -> None:
    body = (await api.post(TEXT, {"prompt": ids_of("7="), "echo": True, "max_tokens": 1})).json()
    assert body["choices"][0]["text"] == "7=5"


def test_a_token_is_told_in_bytes_by_tokenizers_of_both_kinds() -> None:
    byte_level = Tokenizer(build_tokenizer())
    assert byte_level.token_bytes(word_id(" the")) == b" the"
    assert byte_level.token_bytes(ids_of(EURO)[0]) == b"\xe2"
    assert byte_level.token_bytes(EOS) == b"</s>"
    assert byte_level.token_bytes(10**6) == b""

    pieces = HfTokenizer(models.BPE({"<0xE2>": 0, "\N{LOWER ONE EIGHTH BLOCK}the": 1}, []))
    pieces.decoder = decoders.Sequence(
        [decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "), decoders.ByteFallback()]
    )
    assert Tokenizer(pieces).token_bytes(0) == b"\xe2"
    assert Tokenizer(pieces).token_bytes(1) == b" the"
