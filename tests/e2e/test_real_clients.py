"""The `openai` package against `e2llm up`: what an application does."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tokenizers import Tokenizer

from fog.model_choice import DEMO_MODEL
from tests.support.running_fog import RunningFog

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.slow]

QUESTION = "What is 7 plus 5?"
# The number of the answer does not matter: it must be long enough to differ by chance never.
FREE: dict[str, Any] = {"temperature": 1.5, "max_tokens": 24}


@pytest.fixture
def model(fog: RunningFog) -> str:
    return fog.model


@pytest.fixture
def client(fog: RunningFog) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fog.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(fog: RunningFog) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{fog.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def question(text: str = QUESTION) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_a_whole_answer_is_right_and_says_what_it_used(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=question(), extra_body={"return_token_ids": True}
    )

    assert answer.model == model
    [choice] = answer.choices
    assert "12" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    token_ids = (choice.model_extra or {})["token_ids"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(token_ids)
    assert answer.usage.prompt_tokens > 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(token_ids)


def test_a_streamed_answer_is_the_whole_one_in_pieces(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model, messages=question(), temperature=0, extra_body={"return_token_ids": True}
    )

    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=question(),
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"return_token_ids": True},
        )
    )

    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert len(pieces) > 4
    assert "".join(p.delta.content or "" for p in pieces) == whole.choices[0].message.content
    token_ids = [i for p in pieces for i in (p.model_extra or {}).get("token_ids") or ()]
    assert token_ids == (whole.choices[0].model_extra or {})["token_ids"]
    assert [p.finish_reason for p in pieces if p.finish_reason] == ["stop"]
    assert chunks[-1].usage == whole.usage


async def test_sixteen_at_once_get_the_answers_that_each_gets_alone(
    async_client: openai.AsyncOpenAI, model: str
) -> None:
    pairs = [(3 + index, 41 - 2 * index) for index in range(16)]
    texts = [f"What is {a} plus {b}?" for a, b in pairs]

    async def whole(text: str) -> str:
        answer = await async_client.chat.completions.create(
            model=model, messages=question(text), temperature=0
        )
        return answer.choices[0].message.content or ""

    async def streamed(text: str) -> str:
        stream = await async_client.chat.completions.create(
            model=model, messages=question(text), temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    alone = [await whole(text) for text in texts[:6]]
    both = [streamed if index % 2 else whole for index in range(len(texts))]
    together = await asyncio.gather(*(ask(text) for ask, text in zip(both, texts, strict=True)))

    assert together[: len(alone)] == alone
    right = [str(a + b) in answer for (a, b), answer in zip(pairs, together, strict=True)]
    assert sum(right) >= 14, together


def test_a_text_and_its_token_ids_are_completed_alike(client: openai.OpenAI, model: str) -> None:
    text = "7 + 5 ="
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    options: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 12}

    from_text = client.completions.create(prompt=text, **options)
    prompt_ids = tokenizer.encode(text).ids
    from_ids = client.completions.create(prompt=prompt_ids, **options)
    stream = client.completions.create(prompt=prompt_ids, stream=True, **options)

    assert from_text.choices[0].text
    assert from_ids.choices[0].text == from_text.choices[0].text
    assert from_ids.usage == from_text.usage
    assert from_ids.usage is not None
    assert from_ids.usage.prompt_tokens == len(prompt_ids)
    assert "".join(chunk.choices[0].text for chunk in stream) == from_text.choices[0].text


def test_a_seed_gives_the_same_choices_again_and_another_seed_others(
    client: openai.OpenAI, model: str
) -> None:
    def choices(seed: int) -> list[str]:
        answer = client.chat.completions.create(
            model=model,
            messages=question(),
            n=2,
            seed=seed,
            **FREE,
            extra_body={"ignore_eos": True},
        )
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 2 * FREE["max_tokens"]
        return [choice.message.content or "" for choice in answer.choices]

    first = choices(7)

    assert first[0] != first[1]
    assert choices(7) == first
    assert not set(choices(8)) & set(first)


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"model": model, "messages": question(), "temperature": 0}
    full = client.chat.completions.create(**options).choices[0].message.content or ""
    # Somewhere in the middle, over the borders of tokens.
    middle = len(full) // 2
    stop = full[middle : middle + 3]

    answer = client.chat.completions.create(stop=[stop, "never said"], **options)
    stream = client.chat.completions.create(stop=stop, stream=True, **options)
    pieces = [chunk.choices[0] for chunk in stream]

    expected = full[: full.index(stop)]
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert "".join(piece.delta.content or "" for piece in pieces) == expected
    assert pieces[-1].finish_reason == "stop"


def test_a_client_that_leaves_in_mid_stream_frees_its_memory_on_the_nodes(
    fog: RunningFog, client: openai.OpenAI, model: str
) -> None:
    def used_tokens() -> list[int]:
        return [(d["telemetry"] or {}).get("kv_used_tokens") or 0 for d in fog.devices().values()]

    fog.until(lambda: not any(used_tokens()), "no node reports KV in use")
    with kept_reading(client, model):
        # Telemetry comes every two seconds; the whole answer would take half a minute.
        fog.until(lambda: any(used_tokens()), "a node reports KV in use")

    fog.until(lambda: not any(used_tokens()), "every node has freed its KV", 6)
    assert "12" in fog.ask(QUESTION).text


@contextmanager
def kept_reading(client: openai.OpenAI, model: str) -> Iterator[None]:
    """Read a long stream while the block lasts, then close the connection in the middle."""
    stream = client.chat.completions.create(
        model=model,
        messages=question(),
        max_tokens=1800,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    leave = threading.Event()
    finished: list[bool] = []

    def read() -> None:
        for chunk in stream:
            finished.append(bool(chunk.choices and chunk.choices[0].finish_reason))
            if leave.is_set():
                break
        stream.close()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        leave.set()
        reader.join(20)
    assert finished
    assert not any(finished), "the answer was over before the client left"
