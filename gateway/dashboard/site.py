"""The dashboard as one ASGI application, loaded when somebody first opens it.

NiceGUI takes the time and the memory that docs/decisions/0034 gives; a gateway whose dashboard
nobody opens pays neither. It is one application for the process: so is this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from fastapi.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from gateway.dashboard.sources import Sources

if TYPE_CHECKING:
    from gateway.dashboard.frame import Frame

PATH: Final = "/dashboard"
REMEDY: Final = "The dashboard is not installed; get it with: pip install 'e2llm[dashboard]'\n"
_NOT_IMPLEMENTED: Final = 501


def is_installed() -> bool:
    """Whether NiceGUI is here; it is not imported."""
    return find_spec("nicegui") is not None


def remedy() -> PlainTextResponse:
    """Return the answer to whoever asks for a dashboard that is not there."""
    return PlainTextResponse(REMEDY, _NOT_IMPLEMENTED)


class Dashboard:
    """Everything below `PATH`; ASGI.

    Args:
        sources: What pages are made of.
        is_installed: Whether NiceGUI is here.
    """

    def __init__(self, sources: Sources, is_installed: Callable[[], bool] = is_installed) -> None:
        self._sources = sources
        self._is_installed = is_installed
        self._opening: asyncio.Task[Frame] | None = None
        self._life: asyncio.Task[None] | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether somebody has opened it."""
        return self._opening is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_installed():
            await remedy()(scope, receive, send)
            return
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="dashboard-opens")
        # A browser that leaves must not take the loading away from the next one.
        frame = await asyncio.shield(self._opening)
        await frame(scope, receive, send)

    async def _open(self) -> Frame:
        # In a thread: requests that stream must not wait for the import of 500 modules.
        make = await asyncio.to_thread(_import_frame)
        frame = make(self._sources)
        opened = asyncio.Event()
        self._life = asyncio.create_task(self._live(frame, opened), name="dashboard")
        waiting = asyncio.create_task(opened.wait())
        await asyncio.wait({waiting, self._life}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._life.done():
            await self._life  # It says why it did not open; whoever asks next hears it too.
        return frame

    async def _live(self, frame: Frame, opened: asyncio.Event) -> None:
        async with frame.running():
            opened.set()
            await self._sources.stopping.wait()


def _import_frame() -> type[Frame]:
    from gateway.dashboard.frame import Frame

    return Frame
