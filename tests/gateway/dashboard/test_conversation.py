"""The chat of the dashboard, without a browser."""

from __future__ import annotations

import asyncio

import pytest

from gateway.access.caller import ANYBODY, Caller
from gateway.access.keys import Limits, Scope
from gateway.dashboard.conversation import Conversation
from gateway.inference import Inference
from gateway.requests import GenerationFailedError
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api
from tests.support.model_folder import EOS, ids_of


@pytest.fixture
def talk(api: Api, engine: FakeEngine) -> Conversation:
    return Conversation(Inference(engine, api.models, api.settings, api.meter), ANYBODY)


async def said_all(talk: Conversation, text: str, model: str | None = None) -> int:
    """Ask, and return how often the answer grew."""
    grown = 0
    talk.ask(text)
    async for _ in talk.answer(model):
        grown += 1
    return grown


def texts(talk: Conversation) -> list[tuple[str, str]]:
    return [(said.role, said.text) for said in talk.said]


async def test_an_answer_grows_piece_by_piece(talk: Conversation) -> None:
    grown = await said_all(talk, "What is 7 plus 5?")

    assert grown > 1
    assert texts(talk) == [("user", "What is 7 plus 5?"), ("assistant", "It is 12.")]
    assert not talk.is_busy


async def test_the_model_sees_what_was_said_before(talk: Conversation, engine: FakeEngine) -> None:
    engine.script = lambda generation: [*ids_of("12"), EOS]
    await said_all(talk, "7+5?")
    first = engine.submitted[-1]
    await said_all(talk, "+1?")
    second = engine.submitted[-1]

    assert len(second.prompt_ids) > len(first.prompt_ids)
    assert [said.role for said in talk.said] == ["user", "assistant"] * 2
    talk.forget()
    await said_all(talk, "7+5?")
    assert engine.submitted[-1].prompt_ids == first.prompt_ids


async def test_stopping_keeps_what_came_and_ends_the_work(
    talk: Conversation, engine: FakeEngine
) -> None:
    engine.hold_after = 2

    asking = asyncio.create_task(said_all(talk, "What is 7 plus 5?"))
    await engine.holding.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert engine.closed == [engine.submitted[0].request_id]
    assert talk.said[-1].note == "stopped"
    assert talk.said[-1].text
    assert not talk.is_busy


async def test_what_fails_is_said_beside_the_answer(talk: Conversation, engine: FakeEngine) -> None:
    engine.error, engine.error_at = GenerationFailedError("the fog burnt"), 1

    await said_all(talk, "What is 7 plus 5?")

    assert talk.said[-1].note == "the fog burnt"
    assert not talk.is_busy


async def test_a_chat_that_outgrows_the_context_goes_on_without_its_beginning(
    talk: Conversation, engine: FakeEngine
) -> None:
    for _ in range(3):
        await said_all(talk, "What is 7 plus 5?")

    first, *_, last = engine.submitted
    assert talk.said[-1].text == "It is 12."
    assert "left out" in talk.said[-1].note
    assert last.prompt_ids == first.prompt_ids
    assert len(talk.said) == 6


async def test_a_question_that_alone_is_too_long_is_refused(
    talk: Conversation, engine: FakeEngine
) -> None:
    await said_all(talk, "7" * 100)

    assert "tokens" in talk.said[-1].note
    assert engine.submitted == []


async def test_an_answer_that_is_too_long_is_said_to_be_cut_off(
    talk: Conversation, engine: FakeEngine
) -> None:
    engine.script = lambda generation: ids_of("It is 12.") * generation.max_tokens

    await said_all(talk, "What is 7 plus 5?")

    assert talk.said[-1].note.startswith("cut off")


async def test_a_caller_s_limits_hold_for_the_chat(api: Api, engine: FakeEngine) -> None:
    caller = Caller("k1", "guest", Scope.USER, Limits(requests_per_minute=1))
    talk = Conversation(Inference(engine, api.models, api.settings, api.meter), caller)

    await said_all(talk, "7+5?")
    talk.forget()
    await said_all(talk, "+1?")

    assert "requests per minute" in talk.said[-1].note
    assert len(engine.submitted) == 1
    assert [each["caller"] for each in api.meter.requests({})] == ["guest"]


async def test_a_model_that_is_not_there_is_named(talk: Conversation) -> None:
    await said_all(talk, "What is 7 plus 5?", "other")

    assert "other" in talk.said[-1].note
    assert talk.models() == ["tiny"]
