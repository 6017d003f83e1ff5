"""SmolLM3: calls as Hermes writes them, and a template that writes none of earlier answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.tools.hermes import CLOSING, OPENING, Hermes
from gateway.tools.written import with_calls_in_text

TOOLS: Final = "xml_tools"
"""What its template calls the functions that are called so; it knows other ones too."""


class SmolLM3(Hermes):
    """SmolLM3, whose template gets tools under `TOOLS`."""

    def for_template(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]] | None]:
        """Return messages with their calls in the text, see `ShapesMessages`."""
        return with_calls_in_text(messages, _write), None if tools is None else list(tools)


def _write(calls: list[str]) -> str:
    return "\n".join(f"{OPENING}\n{call}\n{CLOSING}" for call in calls)
