"""Elements that several pages have: facts, pictures that fit the window, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from nicegui import events, ui

from gateway.dashboard import svg
from gateway.dashboard.view import View

Facts = tuple[tuple[str, str], ...]
"""Names and what is known, as text."""

_FIRST_WIDTH: Final = 340
_STEP: Final = 10
_WIDTHS: Final = (300, 2400)


def facts(view: View, read: Callable[[], Facts]) -> None:
    """Show names with what is known of them, brought up to date."""
    shown = ui.html("", sanitize=False, tag="dl").classes("facts")
    view.follow(lambda: facts_html(read()), shown.set_content)


def facts_html(known: Facts) -> str:
    """Return the inside of a ``dl``."""
    return "".join(
        svg.tag("div", svg.tag("dt", escape(name)), svg.tag("dd", escape(said)))
        for name, said in known
    )


def fitted(view: View, draw: Callable[[int], str]) -> None:
    """Show a picture as wide as the window lets it be, brought up to date.

    Args:
        view: Of the page.
        draw: Returns the SVG for a width in pixels.
    """
    width = _FIRST_WIDTH
    with ui.element("div").classes("fitted"):
        shown = ui.html("", sanitize=False)

        def fit(event: events.GenericEventArguments) -> None:
            nonlocal width
            # In steps, so that a window that is drawn wider is not redrawn at each pixel.
            room = int(event.args["width"]) // _STEP * _STEP
            width = min(max(room, _WIDTHS[0]), _WIDTHS[1])
            shown.set_content(draw(width))

        ui.element("q-resize-observer").on("resize", fit, throttle=0.2)
    view.follow(lambda: draw(width), shown.set_content)


def main_button(text: str, pressed: Callable[[], object]) -> ui.button:
    """Put the button of a form, in the colours of style.css."""
    return ui.button(text, on_click=pressed, color=None).props("no-caps").classes("main")


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a table, or its caption alone where there are no rows; cells are HTML."""
    if not rows:
        return svg.tag("p", escape(caption))
    return svg.tag(
        "table",
        svg.tag("caption", escape(caption)),
        svg.tag("thead", svg.tag("tr", *(svg.tag("th", escape(h), scope="col") for h in head))),
        svg.tag("tbody", *(svg.tag("tr", *(svg.tag("td", c) for c in row)) for row in rows)),
    )
