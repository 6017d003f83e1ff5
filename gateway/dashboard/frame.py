"""The frame around every page: who may look, navigation, light and dark. NiceGUI's settings."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from nicegui import app, ui
from nicegui.storage import Storage
from starlette.types import Receive, Scope, Send

from gateway.access.keys import WrongKeyError
from gateway.dashboard.elements import main_button
from gateway.dashboard.pages import PAGES, Page
from gateway.dashboard.site import PATH
from gateway.dashboard.sources import Sources, host_problem, may_look
from gateway.dashboard.view import View
from gateway.dashboard.words import sentence
from gateway.weights import load_key

NAME: Final = "E2LLM"
_STYLE: Final = (Path(__file__).parent / "style.css").read_text("utf-8")
_ICON: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<rect width="16" height="16" rx="4" fill="#3b5bdb"/>'
    '<path d="M4 5h8M4 8h5M4 11h8" stroke="#fff" stroke-width="1.6"/></svg>'
)
MOST_TABS: Final = 256
_FILE: Final = re.compile(
    rf"{PATH}/_nicegui(?:_ws/.*|/[^/]+/(?:static|libraries|components|\w*resources|esm)/.+)"
)
# How long a browser that lost its connection may take to come back to the same page.
_RECONNECT_SECONDS: Final = 10.0
_THEMES: Final[dict[bool | None, str]] = {None: "as the system", False: "light", True: "dark"}


class Frame:
    """NiceGUI with our pages, ASGI; one in a process, because there is one NiceGUI."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        # Of browsers: the hash of a key, and the theme. Nobody else's business.
        Storage.path = sources.settings.state / "dashboard"
        Storage.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        ui.add_head_html(f"<style>{_STYLE}</style>", shared=True)
        for page in PAGES:
            self._add(page)
        self._host = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        ui.run_with(
            self._host,
            mount_path=PATH,
            title=NAME,
            favicon=_ICON,
            dark=None,
            language="en-US",
            # Nothing here binds values to elements, so nothing has to look for changes.
            binding_refresh_interval=None,
            reconnect_timeout=_RECONNECT_SECONDS,
            message_history_length=100,
            tailwind=False,
            show_welcome_message=False,
            storage_secret=_cookie_secret(sources.settings.state),
            session_middleware_kwargs={"session_cookie": "e2llm_dashboard", "same_site": "lax"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        may_be_page = scope["type"] == "http" and not _FILE.fullmatch(scope["path"])
        if may_be_page and sum(1 for _ in app.clients()) >= MOST_TABS:
            # Whoever asks for a page, even one that is not there, gets a tab in this process's
            # memory for a minute at least.
            busy = PlainTextResponse("Too many tabs show the dashboard; try again later.\n", 503)
            await busy(scope, receive, send)
            return
        await app(scope, receive, send)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run NiceGUI's timers while the block lasts."""
        async with self._host.router.lifespan_context(self._host):
            yield

    def _add(self, page: Page) -> None:
        def build() -> None:
            request = ui.context.client.request
            if problem := host_problem(
                self._sources.keys.ring,
                request.url.netloc,
                self._sources.settings.public_url,
            ):
                _say(problem)
                return
            caller = self._sources.caller(_key_hash())
            if caller is None:
                _ask_for_key(self._sources)
                return
            view = View(self._sources, caller)
            view.follow(lambda: self._sources.caller(_key_hash()) == caller, _leave_unless)
            with _framed(view, page):
                page.build(view)

        ui.page(f"/{page.path}", title=f"{page.title} – {NAME}", response_timeout=30)(build)


def _cookie_secret(state: Path) -> str:
    """Return what the cookies of browsers are signed with: stays over a restart."""
    return hmac.digest(load_key(state), b"dashboard", "sha256").hex()


def _key_hash() -> str | None:
    found: str | None = app.storage.user.get("key")
    return found


def _leave_unless(may_stay: bool) -> None:
    """Load the page anew, which asks for a key, once the one that was given has ended."""
    if not may_stay:
        ui.navigate.reload()


# --- what is around a page -----------------------------------------------------------------------


@contextmanager
def _framed(view: View, page: Page) -> Iterator[None]:
    theme = _theme()
    with ui.element("header").classes("frame-header"):
        ui.label(NAME).classes("frame-name")
        with ui.element("nav").props('aria-label="Pages"').classes("frame-nav"):
            for each in PAGES:
                link = ui.link(each.title, f"/{each.path}")
                if each is page:
                    link.props('aria-current="page"')
        with ui.element("div").classes("frame-tools"):
            _theme_button(theme)
            if view.caller.id:
                ui.button("Log out", on_click=_log_out, color=None).props("flat dense no-caps")
    with ui.element("div").classes("frame-main"):
        ui.html(page.title, sanitize=False, tag="h1")
        _status_line(view)
        yield


def _status_line(view: View) -> None:
    """Say whether prompts are answered now and, if not, what is in their way."""
    line = ui.label().props('role="status"').classes("frame-status")

    def read() -> tuple[bool, str]:
        state = view.sources.engine.readiness()
        return state.ready, state.reason

    def draw(state: tuple[bool, str]) -> None:
        is_ready, reason = state
        line.set_text("Prompts are answered." if is_ready else f"Not ready: {reason}.")
        line.classes(remove="is-wrong") if is_ready else line.classes("is-wrong")

    view.follow(read, draw)


def _theme() -> ui.dark_mode:
    return ui.dark_mode(app.storage.user.get("dark"))


def _theme_button(theme: ui.dark_mode) -> None:
    user, order = app.storage.user, list(_THEMES)

    def text() -> str:
        return f"Theme: {_THEMES[theme.value]}"

    def turn() -> None:
        chosen = order[(order.index(theme.value) + 1) % len(order)]
        theme.set_value(chosen)
        user["dark"] = chosen
        button.set_text(text())

    button = ui.button(text(), on_click=turn, color=None).props("flat dense no-caps")


# --- who may look --------------------------------------------------------------------------------


def _say(problem: str) -> None:
    with ui.element("div").classes("frame-main"):
        ui.html(NAME, sanitize=False, tag="h1")
        ui.label(problem).props('role="alert"')


def _ask_for_key(sources: Sources) -> None:
    _theme()
    with ui.element("div").classes("frame-main frame-key"):
        ui.html(NAME, sanitize=False, tag="h1")
        ui.label("This gateway asks for an API key. It stays on the gateway, not in this browser.")
        entry = ui.input("API key", password=True).props("outlined autofocus autocomplete=off")
        wrong = ui.label().props('role="alert"').classes("is-wrong")

        def enter() -> None:
            problem = _log_in(sources, entry.value.strip())
            wrong.set_text(problem or "")
            if problem is None:
                ui.navigate.reload()

        entry.on("keydown.enter", enter)
        main_button("Open the dashboard", enter)


def _log_in(sources: Sources, text: str) -> str | None:
    """Remember the key that a browser gave; return what is wrong with it."""
    try:
        key = sources.keys.ring.find(text, time.time())
    except WrongKeyError as error:
        return sentence(f"{error}")
    if not may_look(key):
        return f"{key.name!r} is good for joining only"
    # The hash, not the key: it opens nothing elsewhere, and ends with the key.
    app.storage.user["key"] = key.hash
    return None


def _log_out() -> None:
    app.storage.user.pop("key", None)
    ui.navigate.reload()
