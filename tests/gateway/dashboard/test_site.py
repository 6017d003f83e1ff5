"""Where the dashboard is, what stands there without NiceGUI, and who may look."""

import asyncio
import re
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.access.door import Door, needed_scope
from gateway.access.keys import KeyRing, Limits, make_key, ring_of
from gateway.access.keys import Scope as KeyScope
from gateway.access.store import KeyFile, KeyStore
from gateway.app import error_response
from gateway.dashboard.history import History
from gateway.dashboard.site import Dashboard
from gateway.dashboard.sources import Recent, Sources, caller_of, host_problem
from tests.gateway.dashboard.conftest import Shown
from tests.support.gateway_api import Api

HTML = {"accept": "text/html,application/xhtml+xml"}


def sources_of(api: Api) -> Sources:
    inference = None
    return Sources(
        api.engine,
        inference,  # type: ignore[arg-type]
        api.keys,
        api.settings,
        api.stopping,
        History(),
        api.meter,
    )


async def test_a_browser_is_led_to_the_dashboard(api: Api) -> None:
    answer = await api.get("/", **HTML)
    assert answer.status_code == 307
    assert answer.headers["location"] == "./dashboard/"


async def test_a_program_gets_the_list_of_links(api: Api) -> None:
    assert (await api.get("/", accept="*/*")).json()["service"] == "e2llm gateway"


async def test_without_nicegui_one_line_says_how_to_get_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.dashboard.site.find_spec", lambda name: None)
    for path in ("/", "/dashboard/"):
        answer = await api.get(path, **HTML)
        assert answer.status_code == 501
        assert answer.text.count("\n") == 1
        assert "pip install 'e2llm[dashboard]'" in answer.text


async def test_who_opens_a_dashboard_that_does_not_start_is_told(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, sources: object) -> None:
            pass

        def running(self) -> AbstractAsyncContextManager[None]:
            raise OSError("no more processes")

    monkeypatch.setattr("gateway.dashboard.site._import_frame", lambda: Broken)
    # The next one does, too, instead of waiting for what will not come.
    for _ in range(2):
        answer = await asyncio.wait_for(api.get("/dashboard/", **HTML), 20)
        assert answer.status_code == 500


@pytest.mark.asyncio(loop_scope="session")
async def test_every_file_of_a_page_comes_from_the_gateway(shown: Shown) -> None:
    async with httpx2.AsyncClient(timeout=60) as client:
        page = (await client.get(shown.address())).text
    assert "/dashboard/_nicegui/" in page
    assert "http://" not in page.replace("http://www.w3.org/", "").replace(shown.url, "")
    assert "https://" not in page


@pytest.mark.asyncio(loop_scope="session")
async def test_there_are_only_so_many_tabs_as_memory_holds(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with httpx2.AsyncClient(timeout=60) as client:
        page = (await client.get(shown.address())).text
        monkeypatch.setattr("gateway.dashboard.frame.MOST_TABS", 0)
        for path in ("devices", "no-such-page", "_nicegui/no-such-file"):
            refused = await client.get(shown.address(path))
            assert (refused.status_code, "Too many tabs" in refused.text) == (503, True)
        [style] = re.findall(r"/dashboard/_nicegui/[^/]+/static/nicegui.css", page)
        assert (await client.get(f"{shown.url}{style}")).status_code == 200


def test_the_door_leaves_the_dashboard_to_its_own_keys() -> None:
    assert needed_scope("/dashboard/") is None
    assert needed_scope("/dashboard/_nicegui_ws/socket.io/") is None
    assert needed_scope("/dashboards") is KeyScope.ADMIN


def key_of(scope: KeyScope, *, expires_at: float | None = None) -> tuple[str, KeyRing]:
    text, key = make_key("a name", scope, 0.0, expires_at=expires_at, limits=Limits(concurrency=2))
    return text, ring_of([key])


def test_whoever_reaches_a_gateway_without_keys_may_look() -> None:
    caller = caller_of(KeyRing(), None, now=1.0)
    assert caller is not None
    assert caller.is_admin


def test_a_key_of_a_user_opens_the_dashboard_with_its_name_and_limits() -> None:
    _, ring = key_of(KeyScope.USER)
    [key] = ring.keys.values()
    caller = caller_of(ring, key.hash, now=1.0)
    assert caller is not None
    assert (caller.name, caller.is_admin, caller.limits) == ("a name", False, key.limits)


@pytest.mark.parametrize("given", [None, "", "0" * 64])
def test_without_a_right_key_nobody_looks_at_a_gateway_with_keys(given: str | None) -> None:
    _, ring = key_of(KeyScope.ADMIN)
    assert caller_of(ring, given, now=1.0) is None


def test_a_key_that_has_ended_closes_the_dashboard() -> None:
    _, ring = key_of(KeyScope.ADMIN, expires_at=5.0)
    [key] = ring.keys.values()
    assert caller_of(ring, key.hash, now=4.0) is not None
    assert caller_of(ring, key.hash, now=5.0) is None


def test_a_token_to_join_does_not_open_the_dashboard() -> None:
    _, admins = key_of(KeyScope.ADMIN)
    _, joins = key_of(KeyScope.JOIN, expires_at=9.0)
    [token] = joins.keys.values()
    assert caller_of(admins.merged(joins), token.hash, now=1.0) is None


def test_a_gateway_without_keys_is_not_shown_under_a_name_that_may_be_anybodys() -> None:
    problem = host_problem(KeyRing(), "rebound.example:8080", None)
    assert problem is not None
    assert "E2LLM_GATEWAY_PUBLIC_URL" in problem
    assert host_problem(KeyRing(), "rebound.example:8080", "http://rebound.example:8080") is None
    assert host_problem(KeyRing(), "192.168.1.5:8080", None) is None
    assert host_problem(key_of(KeyScope.ADMIN)[1], "rebound.example:8080", None) is None


@pytest.mark.parametrize(
    ("origin", "is_served"),
    [
        (None, True),
        ("http://127.0.0.1:8080", True),
        ("http://192.168.1.5:8080", True),
        ("https://elsewhere.example", False),
    ],
)
async def test_a_page_of_another_site_gets_no_websocket_where_no_key_is_needed(
    tmp_path: Path, origin: str | None, is_served: bool
) -> None:
    reached = False
    sent: list[Message] = []

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal reached
        reached = True

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    door = Door(behind, keys=KeyStore(KeyFile(tmp_path)), own_url=None, refuse=error_response)
    headers = [(b"host", b"192.168.1.5:8080")]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    scope = {"type": "websocket", "path": "/dashboard/_nicegui_ws/", "headers": headers}
    await door(scope, receive, send)
    assert reached == is_served
    assert [message["type"] for message in sent] == ([] if is_served else ["websocket.close"])


def test_many_tabs_ask_the_engine_once() -> None:
    now, asked = 0.0, 0

    def read() -> int:
        nonlocal asked
        asked += 1
        return asked

    recent = Recent(read, seconds=0.5, clock=lambda: now)
    assert [recent(), recent()] == [1, 1]
    now = 0.5
    assert recent() == 2


async def test_nobody_loads_nicegui_before_the_dashboard_is_opened(api: Api) -> None:
    dashboard = Dashboard(sources_of(api), is_installed=lambda: True)
    assert dashboard.is_loaded is False
    await asyncio.sleep(0)
    assert dashboard.is_loaded is False
