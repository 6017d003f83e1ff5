"""A device that is removed by hand: credential, tokens, and what is kept of it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx2
import pytest

from broker.access import Credential, Kind
from broker.control import DeviceControl, Placement
from broker.joining import JoinFolder
from gateway.access.joining import Joining
from gateway.access.keys import Scope
from gateway.access.removal import Removal
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.joining_broker import answering

FOREVER = 1e12


class ForgetfulEngine(FakeEngine):
    """With a planner that forgets who was removed, if there is one."""

    has_planner = True

    def ask_of_device(
        self, device: str, change: Callable[[DeviceControl], DeviceControl | None]
    ) -> dict[str, object]:
        body = super().ask_of_device(device, change)
        if self.has_planner and body["placement"] == Placement.REMOVED:
            del self.states[device]
        return body


@pytest.fixture
def engine() -> ForgetfulEngine:
    return ForgetfulEngine(lambda generation: [])


@pytest.fixture
def api(engine: ForgetfulEngine, folder: Path, tmp_path: Path, joins: JoinFolder) -> Api:
    return Api(engine, settings_for(folder, tmp_path, joins=joins.path))


def broker(joins: JoinFolder) -> AbstractAsyncContextManager[dict[str, Credential]]:
    """Answer requests as `python -m broker` does; give its users."""
    users = {name: Credential(name, "old", Kind.NODE) for name in ("pi", "never-came")}
    users["gateway-1"] = Credential("gateway-1", "old", Kind.GATEWAY)
    return answering(joins, users)


async def remove(api: Api, device: str) -> httpx2.Response:
    async with api.client() as client:
        return await client.delete(f"/fog/devices/{device}")


async def test_a_device_loses_credential_and_tokens_and_is_forgotten(
    api: Api, engine: ForgetfulEngine, joins: JoinFolder
) -> None:
    engine.states["pi"] = "lost"
    own, other = [
        (await api.keys.create("t", Scope.JOIN, expires_at=FOREVER, device=device))[1]
        for device in ("pi", "mac")
    ]
    async with broker(joins) as users:
        response = await remove(api, "pi")
        assert "pi" not in users
    assert response.json() == {
        "id": "pi", "credential": "removed", "tokens": [own.id], "forgotten": True
    }  # fmt: skip
    assert api.keys.ring.keys[own.id].revoked_at is not None
    assert api.keys.ring.keys[other.id].revoked_at is None
    # Nothing is asked of a device of that name which joins later.
    assert engine.controls == {}


async def test_who_is_no_user_any_more_counts_as_gone_though_its_status_says_ready(
    api: Api, engine: ForgetfulEngine, joins: JoinFolder
) -> None:
    async with broker(joins):
        assert (await remove(api, "pi")).status_code == 200
    assert engine.states == {}


async def test_a_gateway_that_cannot_reach_the_broker_removes_who_is_off_the_bus_alone(
    engine: ForgetfulEngine, folder: Path, tmp_path: Path
) -> None:
    api = Api(engine, settings_for(folder, tmp_path))
    refused = await remove(api, "pi")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "device_in_use")
    assert engine.controls == {"pi": DeviceControl()}
    engine.states["pi"] = "lost"
    assert (await remove(api, "pi")).json()["credential"] == "not here"


async def test_a_planner_that_is_away_finds_what_was_asked(
    api: Api, engine: ForgetfulEngine, joins: JoinFolder
) -> None:
    engine.states["pi"], engine.has_planner = "lost", False
    removal = Removal(engine, api.keys, Joining(api.settings, joins), wait_seconds=0.1)
    async with broker(joins):
        removed = await removal.remove("pi")
    assert removed["forgotten"] is False
    assert engine.controls["pi"].placement is Placement.REMOVED


async def test_who_only_got_a_credential_loses_it(api: Api, joins: JoinFolder) -> None:
    async with broker(joins) as users:
        assert (await remove(api, "never-came")).json()["credential"] == "removed"
        assert "never-came" not in users


@pytest.mark.parametrize("name", ["toaster", "gateway-1", "%00", "x" * 3000])
async def test_what_is_no_device_is_not_found(api: Api, joins: JoinFolder, name: str) -> None:
    async with broker(joins) as users:
        response = await remove(api, name)
        assert "gateway-1" in users
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
