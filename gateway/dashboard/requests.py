"""The page of requests: what each is doing now, and what the latest did."""

from __future__ import annotations

from nicegui import ui

from gateway.dashboard.elements import fitted
from gateway.dashboard.timeline import ended, in_flight
from gateway.dashboard.view import View


def build(view: View) -> None:
    """Put the page into the frame."""

    def entries() -> list[dict[str, object]]:
        return view.sources.requests(view.caller)

    ui.html("In flight", sanitize=False, tag="h2")
    fitted(view, lambda width: in_flight(entries(), width))
    ui.html("Ended last", sanitize=False, tag="h2")
    fitted(view, lambda width: ended(entries(), width))
    with ui.element("p").classes("hint"):
        ui.label(
            "Requests of this gateway, with the name of the key that asked; never what was asked "
            "or answered. KV has moved when the decode replica says so, or else one decode step "
            "before the second token."
        )
