"""Phi-4-mini: ``<|tool_call|>[{"name": ..., "arguments": {...}}, ...]<|/tool_call|>``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.tools.listed import ListedCalls
from gateway.tools.written import with_calls_in_text

TOOLS_END: Final = "<|/tool|>"
_OPENING: Final = "<|tool_call|>"
_CLOSING: Final = "<|/tool_call|>"
# As the model's card has it, where a client says nothing of its own.
_SYSTEM: Final = "You are a helpful assistant with some tools."


class Phi4(ListedCalls):
    """Phi-4-mini, whose template reads tools in the system message, and no calls."""

    def __init__(self) -> None:
        super().__init__(_OPENING, _CLOSING)

    def for_template(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]] | None]:
        """Return messages with all that the template would leave out, see `ShapesMessages`."""
        shaped = with_calls_in_text(messages, _write)
        if tools is None:
            return shaped, None
        if not shaped or shaped[0]["role"] != "system":
            shaped.insert(0, {"role": "system", "content": _SYSTEM})
        listed = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
        # Some that others made read them where most templates do.
        return [{**shaped[0], "tools": listed}, *shaped[1:]], list(tools)


def _write(calls: list[str]) -> str:
    return f"{_OPENING}[{', '.join(calls)}]{_CLOSING}"
