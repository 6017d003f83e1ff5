"""What a page has at hand while it is shown in one browser tab."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from nicegui import ui

from gateway.access.caller import Caller
from gateway.dashboard.sources import Sources

ValueT = TypeVar("ValueT")

REFRESH_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class View:
    """One tab that shows the dashboard.

    Attributes:
        caller: Who looks; a page leaves out what the admin API would refuse him.
    """

    sources: Sources
    caller: Caller

    def follow(
        self,
        read: Callable[[], ValueT],
        draw: Callable[[ValueT], object],
        seconds: float = REFRESH_SECONDS,
    ) -> None:
        """Draw what ``read`` returns now, and again whenever that has changed.

        It is read while the tab is open; what stays equal is not sent to the browser again.
        """
        shown = read()
        draw(shown)

        def look() -> None:
            nonlocal shown
            value = read()
            if value != shown:
                shown = value
                draw(value)

        ui.timer(seconds, look, immediate=False)
