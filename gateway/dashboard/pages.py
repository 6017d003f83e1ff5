"""The pages of the dashboard, in the order of the navigation.

A page is a module with a function ``build``: it is called for each browser tab, inside the
frame, and puts its elements where it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.dashboard import chat, devices, fog, plans, requests, whatif
from gateway.dashboard.view import View


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        path: Below the dashboard's own; "" for the first.
        title: In the navigation, the heading and the browser's tab.
        build: Makes it.
    """

    path: str
    title: str
    build: Callable[[View], None]


PAGES: Final = (
    Page("", "Fog", fog.build),
    Page("requests", "Requests", requests.build),
    Page("devices", "Devices", devices.build),
    Page("plans", "Plans", plans.build),
    Page("what-if", "What if", whatif.build),
    Page("chat", "Chat", chat.build),
)
