"""A gateway with a dashboard over a fog that tests change, and Debian's Chromium to look at it.

NiceGUI is one application for the process, so all tests share one gateway; it, the browser and
the tests run on one event loop, and a test that changes the fog changes it between two of the
server's steps. Each test begins with the default fog, and a window of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright, expect

from gateway.access.keys import KeyRing
from tests.support.gateway_api import Api, settings_for
from tests.support.model_folder import write_model_folder
from tests.support.shown_fog import ShownFog

WIDE: Final = 1440
NARROW: Final = 390
HEIGHT: Final = 900
PATIENCE_MILLISECONDS: Final = 60_000
"""For what must come, on however busy a machine."""


@dataclass
class Shown:
    """A gateway that is served, and its fog."""

    api: Api
    fog: ShownFog
    url: str

    def address(self, path: str = "") -> str:
        return f"{self.url}/dashboard/{path}"


@dataclass
class Window:
    """A browser's window, and what it complained of or fetched elsewhere."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def watch(self) -> None:
        def heard(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.complaints.append(message.text)

        def asked(request: Request) -> None:
            if not request.url.startswith((self.url, "data:", "blob:")):
                self.foreign.append(request.url)

        self.page.on("console", heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", asked)

    async def open(self, path: str = "") -> Page:
        """Go to a page of the dashboard and wait until it is live."""
        await self.page.goto(f"{self.url}/dashboard/{path}")
        await self.page.locator("h1").wait_for()
        return self.page


OpenWindow = Callable[..., Awaitable[Window]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium(chromium_path: Path) -> AsyncIterator[Browser]:
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shown]:
    folder = write_model_folder(tmp_path_factory.mktemp("model"))
    fog = ShownFog()
    api = Api(fog, settings_for(folder, tmp_path_factory.mktemp("state")))
    async with api.served() as url:
        yield Shown(api, fog, url)
        api.stopping.set()


@pytest.fixture
def shown(served: Shown) -> Shown:
    """The gateway, with the default fog and without keys."""
    served.fog.start_over()
    served.api.keys.ring = KeyRing()
    return served


@pytest_asyncio.fixture(loop_scope="session")
async def window(shown: Shown, chromium: Browser) -> AsyncIterator[OpenWindow]:
    """Opens windows: of a width, light or dark."""
    opened: list[Window] = []

    async def new(width: int = WIDE, *, dark: bool = False) -> Window:
        context = await chromium.new_context(
            viewport={"width": width, "height": HEIGHT},
            color_scheme="dark" if dark else "light",
        )
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        found = Window(await context.new_page(), shown.url)
        found.watch()
        opened.append(found)
        return found

    yield new
    await asyncio.gather(*(each.page.context.close() for each in opened))
