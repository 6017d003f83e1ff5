"""An answer goes on over another connection: what the client has is left out, the rest is equal."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.requests import JournalUnavailableError, Written
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api
from tests.support.sse import events_of, numbered_events_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "7 + 5?"}], "stream": True}
UNKNOWN = "chatcmpl-" + "0" * 24

Events = list[tuple[str | None, str]]


async def whole_stream(api: Api, path: str, body: dict[str, Any]) -> tuple[str, Events]:
    """Return an undisturbed stream and the id of its answer."""
    response = await api.post(path, body)
    assert response.status_code == 200, response.text
    answer_id: str = events_of(response.text)[0]["id"]
    return answer_id, numbered_events_of(response.text)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"return_token_ids": True},
        {"stop": [" 1"]},
        {"max_tokens": 4},
        {"stream_options": {"include_usage": True}},
    ],
    ids=["plain", "token ids", "stop string", "length", "usage"],
)
@pytest.mark.parametrize("num_known", [0, 1, 3, 10])
@pytest.mark.parametrize("num_seen", [0, 1, 4])
async def test_behind_any_event_the_same_events_follow(
    api: Api, engine: FakeEngine, extra: dict[str, Any], num_known: int, num_seen: int
) -> None:
    answer_id, undisturbed = await whole_stream(api, CHAT, {**QUESTION, **extra})
    generation = engine.submitted[0]
    ids = list(engine.script(generation))[: min(num_known, generation.max_tokens)]
    api.write_down(generation, ids)
    seen = undisturbed[num_seen][0]
    headers = {} if seen is None else {"last-event-id": seen}

    response = await api.get(f"/fog/requests/{answer_id}", **headers)

    expected = undisturbed[num_seen + 1 :] if seen is not None else undisturbed
    assert numbered_events_of(response.text) == expected


async def test_the_engine_goes_on_behind_what_is_written_as_another_request(
    api: Api, engine: FakeEngine
) -> None:
    answer_id, _ = await whole_stream(api, CHAT, {**QUESTION, "temperature": 1.0})
    first = engine.submitted[0]
    ids = list(engine.script(first))[:3]
    api.write_down(replace(first, max_tokens=21), ids)

    await api.get(f"/fog/requests/{answer_id}")

    second = engine.submitted[1]
    assert second.generated == tuple(ids)
    assert (second.entry, second.request_id) == (first.request_id, f"{first.request_id}~1")
    # Noise is of seed, choice, position and token id: with these equal, the tokens are.
    assert second.sampling == first.sampling
    assert (second.prompt_ids, second.max_tokens) == (first.prompt_ids, 21)
    assert engine.taken_over == [[first.request_id]]


async def test_several_choices_go_on_each_behind_its_own_tokens(
    api: Api, engine: FakeEngine
) -> None:
    answer_id, _ = await whole_stream(
        api, TEXT, {"prompt": "7 + 5", "n": 2, "stream": True, "return_token_ids": True}
    )
    first, second = engine.submitted
    ids = list(engine.script(first))
    api.write_down(first, ids[:5])  # The other choice had not begun.

    response = await api.get(f"/fog/requests/{answer_id}", **{"last-event-id": "2,0"})

    tokens: dict[int, list[int]] = {0: [], 1: []}
    for event in events_of(response.text)[:-1]:
        choice = event["choices"][0]
        tokens[choice["index"]] += choice["token_ids"]
    assert tokens == {0: ids[2:], 1: ids}
    assert numbered_events_of(response.text)[-2][0] == f"{len(ids)},{len(ids)}"
    assert [each.generated for each in engine.submitted[2:]] == [tuple(ids[:5]), ()]
    assert second.sampling == engine.submitted[3].sampling


async def test_a_finished_answer_is_told_again_without_the_fog(
    api: Api, engine: FakeEngine
) -> None:
    answer_id, undisturbed = await whole_stream(api, CHAT, QUESTION)
    api.write_down(engine.submitted[0], list(engine.script(engine.submitted[0])), "finished")

    response = await api.get(f"/fog/requests/{answer_id}")
    whole = await api.get(f"/fog/requests/{answer_id}?stream=false")

    assert numbered_events_of(response.text) == undisturbed
    body = whole.json()
    assert (body["object"], body["id"]) == ("chat.completion", answer_id)
    assert body["choices"][0]["message"]["content"] == "It is 12."
    assert len(engine.submitted) == 1


@pytest.mark.parametrize("answer_id", [UNKNOWN, "chatcmpl-1", "nothing", "cmpl-..", "%00"])
async def test_an_unknown_request_is_not_found(api: Api, answer_id: str) -> None:
    response = await api.get(f"/fog/requests/{answer_id}")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "request_not_found"


@pytest.mark.parametrize("last", ["abc", "1,2", "-1", "1,", "9999999999"])
async def test_an_id_of_another_answer_is_refused(api: Api, engine: FakeEngine, last: str) -> None:
    answer_id, _ = await whole_stream(api, CHAT, QUESTION)
    api.write_down(engine.submitted[0], [])

    response = await api.get(f"/fog/requests/{answer_id}", **{"last-event-id": last})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "Last-Event-ID"


@pytest.mark.parametrize("field", ["revision", "weights"])
async def test_no_answer_goes_on_with_another_model(
    api: Api, engine: FakeEngine, field: str
) -> None:
    answer_id, _ = await whole_stream(api, CHAT, QUESTION)
    api.write_down(engine.submitted[0], [])
    engine.journal[f"{answer_id}-0"].fields[field] = "other"

    response = await api.get(f"/fog/requests/{answer_id}")

    assert response.status_code == 409
    assert field in response.json()["error"]["message"]


async def test_without_a_journal_the_client_is_told_to_come_again(
    api: Api, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(entry: str) -> Written | None:
        raise JournalUnavailableError("Redis does not answer")

    monkeypatch.setattr(engine, "written", fail)

    response = await api.get(f"/fog/requests/{UNKNOWN}")

    assert response.status_code == 503
    assert "Redis does not answer" in response.json()["error"]["message"]
    assert int(response.headers["retry-after"]) > 0
