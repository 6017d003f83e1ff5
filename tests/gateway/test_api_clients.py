"""Real clients over a real socket: the openai package, and clients that leave."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from gateway.access.keys import Limits, Scope
from gateway.requests import QueueFullError
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api
from tests.support.model_folder import EOS, ids_of

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "7 + 5?"}]
WAIT_SECONDS = 20


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(lambda generation: [*ids_of("It is 12 €."), EOS])


@pytest.fixture
async def url(api: Api) -> AsyncIterator[str]:
    async with api.served() as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_the_openai_client_gets_a_whole_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=QUESTION)
    assert answer.choices[0].message.content == "It is 12 €."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 14
    assert answer._request_id
    assert answer._request_id.startswith("req_")


async def test_the_openai_client_knows_a_wrong_key_a_wrong_scope_and_a_limit(
    api: Api, url: str
) -> None:
    await api.keys.create("boss", Scope.ADMIN)
    key, _ = await api.keys.create("me", Scope.USER, limits=Limits(requests_per_minute=1))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="incorrect API key"):
            await client.models.list()
        client.api_key = key
        raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION)
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(model=MODEL, messages=QUESTION)
        with pytest.raises(openai.PermissionDeniedError):
            await client.get(f"{url}/fog/devices", cast_to=object)
    assert limited.value.code == "rate_limit_exceeded"


async def test_the_openai_client_reads_a_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"return_token_ids": True},
    )
    chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "It is 12 €."
    assert choices[-1].finish_reason == "stop"
    token_ids = [i for choice in choices for i in (choice.model_extra or {}).get("token_ids", [])]
    assert token_ids == [*ids_of("It is 12 €."), EOS]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 14


async def test_the_openai_client_completes_text_and_token_ids(client: openai.AsyncOpenAI) -> None:
    for prompt in ("7 + 5 =", ids_of("7 + 5 =")):
        answer = await client.completions.create(model=MODEL, prompt=prompt)
        assert answer.choices[0].text == "It is 12 €."
    stream = await client.completions.create(model=MODEL, prompt="7 + 5 =", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "It is 12 €."


async def test_the_openai_client_reads_log_probabilities(
    client: openai.AsyncOpenAI,
) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, logprobs=True, top_logprobs=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert [entry.token for entry in logprobs.content or ()][:3] == ["I", "t", " "]


async def test_the_openai_client_reads_responses_whole_and_streamed(
    client: openai.AsyncOpenAI,
) -> None:
    whole = await client.responses.create(model=MODEL, input="7 + 5?")
    stream = await client.responses.create(model=MODEL, input="7 + 5?", stream=True)
    events = [event async for event in stream]

    assert whole.output_text == "It is 12 €."
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "It is 12 €."
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "It is 12 €."


async def test_several_clients_at_once_get_their_own_answers(
    client: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.script = lambda generation: [*generation.prompt_ids, EOS]

    async def ask(name: str) -> str:
        answer = await client.completions.create(model=MODEL, prompt=name * 3, stream=False)
        return answer.choices[0].text

    async def ask_streamed(name: str) -> str:
        stream = await client.completions.create(model=MODEL, prompt=name * 3, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    names = "abcdefgh"
    answers = await asyncio.gather(*map(ask, names), *map(ask_streamed, names))
    assert answers == [name * 3 for name in names] * 2


async def test_the_openai_client_raises_its_own_errors(
    client: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        await client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad_request:
        await client.chat.completions.create(model=MODEL, messages=QUESTION, n=0)
    assert bad_request.value.param == "n"
    engine.error = QueueFullError("256 requests wait", 7)
    with pytest.raises(openai.RateLimitError) as full:
        await client.chat.completions.create(model=MODEL, messages=QUESTION)
    assert full.value.response.headers["retry-after"] == "7"


async def test_the_openai_client_raises_an_error_within_a_stream(
    client: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.error, engine.error_at = QueueFullError("full", 7), 4
    stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
    with pytest.raises(openai.APIError, match="full"):
        async for _ in stream:
            pass


# --- clients that leave --------------------------------------------------------------------


class RawClient:
    """A client that hangs up when it wants to, without a farewell."""

    def __init__(self, url: str) -> None:
        self._address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))

    async def post(self, path: str, body: object) -> None:
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        text = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(text)}\r\n\r\n"
        self._writer.write(head.encode() + text)
        await self._writer.drain()

    async def read_until(self, text: bytes) -> bytes:
        return await asyncio.wait_for(self._reader.readuntil(text), WAIT_SECONDS)

    def hang_up(self) -> None:
        connection = self._writer.get_extra_info("socket")
        # Linger 0: the connection is reset, as when a process is killed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._writer.close()


@pytest.mark.parametrize("held_after", [0, 3])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("num_choices", [1, 3])
async def test_the_work_is_cancelled_when_the_client_leaves(
    url: str, engine: FakeEngine, held_after: int, stream: bool, num_choices: int
) -> None:
    engine.hold_after = held_after
    client = RawClient(url)
    body = {"messages": QUESTION, "stream": stream, "n": num_choices}
    await client.post("/v1/chat/completions", body)
    await asyncio.wait_for(engine.holding.wait(), WAIT_SECONDS)
    client.hang_up()
    await asyncio.wait_for(engine.all_closed.wait(), WAIT_SECONDS)
    assert len(engine.closed) == num_choices
    assert not engine.completed


async def test_the_openai_client_cancels_by_closing_its_stream(
    client: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.hold_after = 5
    stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content == "I":
            break
    await stream.close()
    await asyncio.wait_for(engine.all_closed.wait(), WAIT_SECONDS)
    assert not engine.completed


async def test_other_requests_go_on_when_a_client_leaves(
    url: str, client: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.hold_after = 3
    leaving = RawClient(url)
    await leaving.post("/v1/chat/completions", {"messages": QUESTION, "stream": True})
    await asyncio.wait_for(engine.holding.wait(), WAIT_SECONDS)
    staying = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=QUESTION))
    leaving.hang_up()
    while len(engine.closed) < 1:
        await asyncio.sleep(0)
    engine.go_on.set()
    answer = await asyncio.wait_for(staying, WAIT_SECONDS)
    assert answer.choices[0].message.content == "It is 12 €."


# --- the gateway leaves --------------------------------------------------------------------


async def test_open_streams_get_an_error_event_when_the_gateway_stops(
    url: str, api: Api, engine: FakeEngine
) -> None:
    engine.hold_after = 3
    client = RawClient(url)
    await client.post("/v1/chat/completions", {"messages": QUESTION, "stream": True})
    await asyncio.wait_for(engine.holding.wait(), WAIT_SECONDS)
    api.stopping.set()
    text = (await client.read_until(b"the gateway is stopping")).decode()
    assert text.startswith("HTTP/1.1 200")
    assert 'data: {"error"' in text
    client.hang_up()
    await asyncio.wait_for(engine.all_closed.wait(), WAIT_SECONDS)


async def test_open_requests_get_an_error_when_the_gateway_stops(
    url: str, api: Api, engine: FakeEngine
) -> None:
    engine.hold_after = 3
    client = RawClient(url)
    await client.post("/v1/chat/completions", {"messages": QUESTION})
    await asyncio.wait_for(engine.holding.wait(), WAIT_SECONDS)
    api.stopping.set()
    head = (await client.read_until(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 503")
    client.hang_up()
    await asyncio.wait_for(engine.all_closed.wait(), WAIT_SECONDS)
