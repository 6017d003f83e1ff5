"""Devices that join over HTTP: with a token, until it expires, and only as themselves."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker.access import Credential, Kind
from broker.address import BrokerAddress
from broker.joining import JoinFolder
from gateway.access.joining import Joining, broker_for
from gateway.access.keys import Scope
from gateway.errors import ApiError
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.joining_broker import answering

FOREVER = 1e12


@pytest.fixture
def api(engine: FakeEngine, folder: Path, tmp_path: Path, joins: JoinFolder) -> Api:
    return Api(engine, settings_for(folder, tmp_path, joins=joins.path))


def broker(joins: JoinFolder) -> AbstractAsyncContextManager[dict[str, Credential]]:
    """Answer requests as `python -m broker` does; give its users."""
    return answering(joins, {"pi": Credential("pi", "old", Kind.NODE)})


async def token_for(api: Api, device: str | None = None, expires_at: float = FOREVER) -> str:
    text, _ = await api.keys.create("t", Scope.JOIN, expires_at=expires_at, device=device)
    return text


async def ask(api: Api, token: str | None, device: Any = "mac") -> httpx2.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with api.client() as client:
        return await client.post("/fog/join", headers=headers, json={"device": device})


async def test_a_device_gets_its_credential_and_where_the_broker_is(
    api: Api, joins: JoinFolder
) -> None:
    async with broker(joins) as users:
        response = await ask(api, await token_for(api))
    body = response.json()
    address = BrokerAddress.parse(body["broker"])
    assert (body["device"], body["site"]) == ("mac", "local")
    # The broker is on the gateway's machine, so it is where the device found the gateway.
    assert (address.host, address.port) == ("gateway.test", 1883)
    assert (address.username, address.password) == ("mac", users["mac"].password)


async def test_also_an_open_gateway_lets_nobody_join_without_a_token(api: Api) -> None:
    assert api.keys.ring.is_open
    assert (await ask(api, None)).status_code == 401
    expired = await token_for(api, expires_at=1.0)
    assert (await ask(api, expired)).status_code == 401
    user, _ = await api.keys.create("admin", Scope.ADMIN)
    user, _ = await api.keys.create("user", Scope.USER)
    assert (await ask(api, user)).status_code == 403


async def test_a_token_for_any_device_takes_no_other_ones_place(
    api: Api, joins: JoinFolder
) -> None:
    async with broker(joins) as users:
        refused = await ask(api, await token_for(api), "pi")
        assert users["pi"].password == "old"
        other = await ask(api, await token_for(api, "pi"), "mac")
        again = await ask(api, await token_for(api, "pi"), "pi")
        assert users["pi"].password != "old"
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "join_refused")
    assert other.status_code == 403
    assert again.status_code == 200


@pytest.mark.parametrize("device", ["a/b", "", 7])
async def test_what_can_be_no_device_is_refused(api: Api, joins: JoinFolder, device: Any) -> None:
    async with broker(joins):
        response = await ask(api, await token_for(api), device)
    assert response.status_code in (400, 409)


async def test_a_broker_that_does_not_answer_is_named(joins: JoinFolder, api: Api) -> None:
    joining = Joining(api.settings, joins, wait_seconds=0.0)
    with pytest.raises(ApiError, match="python -m broker") as caught:
        await joining.join("mac", may_replace=False)
    assert caught.value.status == 503
    assert list(joins.path.iterdir()) == []


async def test_a_gateway_that_cannot_reach_the_broker_says_how_it_could(
    engine: FakeEngine, folder: Path, tmp_path: Path
) -> None:
    api = Api(engine, settings_for(folder, tmp_path))
    response = await ask(api, await token_for(api))
    assert response.status_code == 501
    assert "E2LLM_GATEWAY_JOINS" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("own", "public", "found"),
    [
        ("mqtt://g:p@127.0.0.1:2000", None, "mqtt://fog.local:2000"),
        ("mqtt://g:p@broker.local", None, "mqtt://broker.local:1883"),
        ("mqtt://g:p@127.0.0.1:2000", "mqtt://mqtt.lan:1884", "mqtt://mqtt.lan:1884"),
    ],
)
def test_where_devices_find_the_broker(
    tmp_path: Path, own: str, public: str | None, found: str
) -> None:
    settings = settings_for(tmp_path, tmp_path, broker=own, public_broker=public)
    assert str(broker_for(settings, "fog.local")) == found
