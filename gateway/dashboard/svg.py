"""Pieces of SVG as text. Pure; colours are classes of style.css, so that light and dark are too."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Final

from gateway.dashboard.layout import Size

CHARACTER_PIXELS: Final = 6.4
"""Mean width of a character at 12 px: texts are cut by it, since nothing here can measure them."""


def tag(name: str, *content: str, **attributes: object) -> str:
    """Return an element; ``_`` at an attribute's end is left out, others become ``-``."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{said}>{''.join(content)}</{name}>" if content else f"<{name}{said}/>"


def text(content: str, x: float, y: float, class_: str = "", **attributes: object) -> str:
    """Return a line of text that begins, or as ``text_anchor`` says, at a point."""
    return tag("text", escape(content), x=x, y=y, class_=class_ or None, **attributes)


def title(content: str) -> str:
    """Return what a browser shows beside the pointer, and reads out."""
    return tag("title", escape(content))


def number(value: object) -> str:
    """Return a coordinate with at most one digit after the point, other things as text."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def cut(content: str, pixels: float) -> str:
    """Return as much of a text as about fits."""
    most = max(int(pixels / CHARACTER_PIXELS), 1)
    return content if len(content) <= most else content[: most - 1] + "…"


def picture(
    width: float,
    height: float,
    heading: str,
    description: str,
    *content: str,
    class_: str,
    role: str = "img",
) -> str:
    """Return a whole picture, with what it is and what it shows for who cannot see it.

    A picture with links in it has the role ``group``: who hears it can still follow them.
    """
    return tag(
        "svg",
        title(heading),
        tag("desc", escape(description)),
        *content,
        class_=class_,
        viewBox=f"0 0 {number(float(width))} {number(float(height))}",
        width=width,
        height=height,
        role=role,
        aria_label=heading,
    )


@dataclass(frozen=True, slots=True)
class Drawing:
    """A part of a picture at its own origin."""

    size: Size
    content: str

    def at(self, x: float, y: float) -> str:
        """Return it moved to a place."""
        return tag("g", self.content, transform=f"translate({number(x)} {number(y)})")
