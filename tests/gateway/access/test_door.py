"""Who may do what over HTTP, with keys and without, and what limits do to answers."""

import asyncio
import time
from typing import Any

import httpx2
import pytest

from gateway.access.caller import Caller
from gateway.access.keys import Limits, Scope
from gateway.course import Stretch
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api
from tests.support.model_folder import EOS, ids_of
from tests.support.sse import events_of

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "7 + 5?"}]}
GATED = [
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/models"),
    ("POST", "/tokenize"),
    ("POST", "/api/chat"),
    ("GET", "/api/tags"),
    ("GET", "/fog/requests/chatcmpl-1"),
]
ADMINISTERED = [
    ("GET", "/fog/plan"),
    ("GET", "/fog/plans"),
    ("GET", "/fog/devices"),
    ("POST", "/fog/devices/pi/drain"),
    ("PUT", "/fog/devices/pi/owner"),
    ("GET", "/fog/requests"),
    ("POST", "/fog/what-if"),
    ("GET", "/metrics"),
    ("GET", "/fog/keys"),
    ("POST", "/fog/keys"),
    ("DELETE", "/fog/keys/0"),
]


async def key_for(api: Api, scope: Scope, name: str = "someone", **limits: int) -> str:
    text, _ = await api.keys.create(name, scope, limits=Limits(**limits))
    return text


async def ask(
    api: Api, method: str, path: str, key: str | None = None, body: Any = None
) -> httpx2.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with api.client() as client:
        return await client.request(method, path, headers=headers, json=body)


# --- who may in -----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), GATED + ADMINISTERED)
async def test_with_keys_nobody_comes_in_without_one(api: Api, method: str, path: str) -> None:
    await key_for(api, Scope.ADMIN)
    for key in (None, "e2llm-0-0"):
        response = await ask(api, method, path, key)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]
        error = response.json()["error"]
        if not path.startswith("/api/"):
            assert error["code"] == "invalid_api_key"


@pytest.mark.parametrize(("method", "path"), ADMINISTERED)
async def test_a_users_key_does_not_administer(api: Api, method: str, path: str) -> None:
    await key_for(api, Scope.ADMIN)
    response = await ask(api, method, path, await key_for(api, Scope.USER))
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "insufficient_permissions"


@pytest.mark.parametrize("scope", [Scope.ADMIN, Scope.USER])
async def test_a_key_asks_for_text(api: Api, scope: Scope) -> None:
    await key_for(api, Scope.ADMIN)
    response = await ask(api, "POST", CHAT, await key_for(api, scope), QUESTION)
    assert response.json()["choices"][0]["message"]["content"] == "It is 12."


async def test_without_keys_everybody_may_everything_whatever_key_they_send(api: Api) -> None:
    for key in (None, "none"):
        assert (await ask(api, "POST", CHAT, key, QUESTION)).status_code == 200
        assert (await ask(api, "GET", "/fog/devices", key)).status_code == 200


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        (None, "fog.example", 200),
        ("http://localhost:3000", "127.0.0.1:8080", 200),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", 200),
        ("http://[::1]:8080", "[::1]:8080", 200),
        ("http://192.168.1.5:8080", "192.168.1.5:8080", 200),
        ("https://evil.example", "127.0.0.1:8080", 403),
        ("http://evil.example:8080", "evil.example:8080", 403),
        ("http://192.168.1.66", "192.168.1.5:8080", 403),
        ("null", "127.0.0.1:8080", 403),
        ("http://[", "127.0.0.1:8080", 403),
    ],
)
async def test_an_open_gateway_answers_no_page_of_another_site(
    api: Api, origin: str | None, host: str, status: int
) -> None:
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    async with api.client() as client:
        response = await client.post(CHAT, headers=headers, json=QUESTION)
    assert response.status_code == status


async def test_with_keys_a_page_needs_one_as_everybody_does(api: Api) -> None:
    headers = {"Authorization": f"Bearer {await key_for(api, Scope.ADMIN)}"}
    async with api.client() as client:
        response = await client.get(
            "/v1/models", headers={**headers, "Origin": "https://a.example"}
        )
    assert response.status_code == 200


async def test_who_shows_the_wrong_kind_of_key_is_told_what_makes_the_right_one(api: Api) -> None:
    await key_for(api, Scope.ADMIN)
    key = await key_for(api, Scope.USER)
    token, _ = await api.keys.create("pi", Scope.JOIN, expires_at=1e12)
    said = [
        (await ask(api, "POST", path, shown, {})).json()["error"]["message"]
        for path, shown in (("/fog/join", key), ("/fog/keys", key), (CHAT, token))
    ]
    makers = [text.partition("; ")[2] for text in said]
    assert makers == [
        "e2llm token create makes one",
        "e2llm key create --scope admin makes one",
        "e2llm key create --scope user makes one",
    ]


async def test_a_token_to_join_is_no_key(api: Api) -> None:
    await key_for(api, Scope.ADMIN)
    text, _ = await api.keys.create("pi", Scope.JOIN, expires_at=1e12)
    assert (await ask(api, "POST", CHAT, text, QUESTION)).status_code == 403


async def test_health_needs_no_key_and_tells_strangers_no_details(
    api: Api, engine: FakeEngine
) -> None:
    engine.ready.details["devices"] = {"ready": 2}
    admin = await key_for(api, Scope.ADMIN)
    assert (await ask(api, "GET", "/healthz")).status_code == 200
    assert (await ask(api, "GET", "/readyz")).json()["details"] == {}
    assert (await ask(api, "GET", "/readyz", admin)).json()["details"]["devices"] == {"ready": 2}


async def test_weights_need_a_signed_address_or_an_admins_key(api: Api) -> None:
    assert api.slot.served is not None
    path = f"/weights/{api.slot.served.manifest.revision}/model.safetensors"
    assert (await ask(api, "GET", path)).status_code == 403
    admin, user = await key_for(api, Scope.ADMIN), await key_for(api, Scope.USER)
    assert (await ask(api, "GET", path, user)).status_code == 403
    assert (await ask(api, "GET", path, admin)).status_code == 200


# --- keys over HTTP -------------------------------------------------------------------------


async def test_an_admin_makes_lists_and_revokes_keys(api: Api) -> None:
    first = await ask(api, "POST", "/fog/keys", None, {"name": "me", "scope": "admin"})
    admin = first.json()["key"]
    limits = {"requests_per_minute": 60, "tokens_per_minute": 9000, "concurrency": 2}
    made = await ask(
        api, "POST", "/fog/keys", admin, {"name": "lamp", "expires_seconds": 60, **limits}
    )
    lamp = made.json()

    listed = (await ask(api, "GET", "/fog/keys", admin)).json()
    assert [key["name"] for key in listed] == ["me", "lamp"]
    assert limits.items() <= listed[1].items()
    assert "key" not in listed[0]
    assert "hash" not in listed[0]
    assert (await ask(api, "GET", "/v1/models", lamp["key"])).status_code == 200
    ended = await ask(api, "DELETE", f"/fog/keys/{lamp['id']}", admin)
    assert ended.json()["state"] == "revoked"
    assert (await ask(api, "GET", "/v1/models", lamp["key"])).status_code == 401


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x", "scope": "root"}, "scope"),
        ({"name": "x", "scope": "admin", "concurrency": 0}, "concurrency"),
        ({"name": "x"}, "first key"),
        ({"name": "x", "scope": "join"}, "expire"),
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(
    api: Api, body: dict[str, Any], named: str
) -> None:
    response = await ask(api, "POST", "/fog/keys", None, body)
    assert response.status_code == 400
    assert named in response.json()["error"]["message"]


async def test_revoking_what_is_not_there_is_a_404(api: Api) -> None:
    admin = await key_for(api, Scope.ADMIN)
    assert (await ask(api, "DELETE", "/fog/keys/0", admin)).status_code == 404


# --- limits ---------------------------------------------------------------------------------


async def test_answers_say_what_is_left_and_the_next_request_is_a_429(api: Api) -> None:
    await key_for(api, Scope.ADMIN)
    key = await key_for(api, Scope.USER, "lamp", requests_per_minute=2, tokens_per_minute=1000)
    first = await ask(api, "POST", CHAT, key, QUESTION)
    second = await ask(api, "POST", CHAT, key, QUESTION)
    third = await ask(api, "POST", CHAT, key, QUESTION)

    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-tokens"] == "1000"
    used = first.json()["usage"]["total_tokens"]
    assert second.headers["x-ratelimit-remaining-tokens"] == str(1000 - used)
    assert third.status_code == 429
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(third.headers["retry-after"]) > 0
    assert third.headers["x-ratelimit-remaining-requests"] == "0"


async def test_limits_hold_for_streams_and_for_ollama_too(api: Api) -> None:
    await key_for(api, Scope.ADMIN)
    key = await key_for(api, Scope.USER, "lamp", requests_per_minute=1)
    streamed = await ask(api, "POST", CHAT, key, {**QUESTION, "stream": True})
    assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
    assert events_of(streamed.text)
    body = {"model": "tiny", "prompt": "x"}
    refused = await ask(api, "POST", "/api/generate", key, body)
    assert refused.status_code == 429
    assert "requests per minute" in refused.json()["error"]


async def test_tokens_of_answers_count_and_a_long_request_is_let_in_once(
    api: Api, engine: FakeEngine
) -> None:
    engine.script = lambda generation: [*ids_of("x" * 30), EOS]
    await key_for(api, Scope.ADMIN)
    key = await key_for(api, Scope.USER, "lamp", tokens_per_minute=20)
    assert (await ask(api, "POST", CHAT, key, QUESTION)).status_code == 200
    refused = await ask(api, "POST", CHAT, key, QUESTION)
    assert refused.status_code == 429
    assert "20 tokens per minute" in refused.json()["error"]["message"]


async def test_no_more_requests_than_allowed_are_open_at_once(api: Api, engine: FakeEngine) -> None:
    await key_for(api, Scope.ADMIN)
    key = await key_for(api, Scope.USER, "lamp", concurrency=1)
    engine.hold_after = 1
    first = asyncio.create_task(ask(api, "POST", CHAT, key, QUESTION))
    await engine.holding.wait()
    assert (await ask(api, "POST", CHAT, key, QUESTION)).status_code == 429
    engine.go_on.set()
    assert (await first).status_code == 200
    assert (await ask(api, "POST", CHAT, key, QUESTION)).status_code == 200


# --- whose answer it is ---------------------------------------------------------------------


async def test_an_answer_is_read_again_by_who_asked_and_by_admins_only(
    api: Api, engine: FakeEngine
) -> None:
    admin = await key_for(api, Scope.ADMIN)
    mine, other = await key_for(api, Scope.USER), await key_for(api, Scope.USER)
    answer = (await ask(api, "POST", CHAT, mine, QUESTION)).json()
    api.write_down(engine.submitted[0], [*ids_of("It is 12."), EOS], "finished")
    path = f"/fog/requests/{answer['id']}"

    assert (await ask(api, "GET", path, mine)).status_code == 200
    assert (await ask(api, "GET", path, admin)).status_code == 200
    assert (await ask(api, "GET", path, other)).status_code == 404


async def test_a_listed_request_says_how_long_each_phase_took(api: Api, engine: FakeEngine) -> None:
    admin = await key_for(api, Scope.ADMIN, "boss")
    await ask(api, "POST", CHAT, admin, QUESTION)
    request_id = engine.submitted[0].request_id
    engine.stretches = {request_id: (Stretch("queue", 0.0, 0.25), Stretch("prefill", 0.25, 1.5))}

    [listed] = (await ask(api, "GET", "/fog/requests", admin)).json()

    assert listed["phases"] == [
        {"phase": "queue", "begins_seconds": 0.0, "seconds": 0.25},
        {"phase": "prefill", "begins_seconds": 0.25, "seconds": 1.5},
    ]


async def test_of_the_requests_a_user_sees_his_own(api: Api) -> None:
    await key_for(api, Scope.ADMIN)
    mine, other = [await key_for(api, Scope.USER, name) for name in ("mine", "other")]
    for key in (mine, other):
        await ask(api, "POST", CHAT, key, QUESTION)
    caller = Caller(api.keys.ring.find(mine, time.time()).id, "mine", Scope.USER)

    assert [each["caller"] for each in api.meter.requests({}, caller)] == ["mine"]
    assert len(api.meter.requests({})) == 2


async def test_requests_are_listed_with_figures_and_without_texts(
    api: Api, engine: FakeEngine
) -> None:
    admin = await key_for(api, Scope.ADMIN, "boss")
    answer = (await ask(api, "POST", CHAT, admin, QUESTION)).json()
    engine.hold_after = 2
    running = asyncio.create_task(ask(api, "POST", CHAT, admin, QUESTION))
    await engine.holding.wait()
    listing = await ask(api, "GET", "/fog/requests", admin)
    engine.go_on.set()
    await running

    open_one, ended = listing.json()
    assert (open_one["state"], open_one["answer_tokens"]) == ("answering", 2)
    assert (ended["state"], ended["id"], ended["caller"]) == ("finished", answer["id"], "boss")
    assert ended["answer_tokens"] == answer["usage"]["completion_tokens"]
    assert ended["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert "It is" not in listing.text
