"""Hermes and Qwen: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` for each call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.tools.calls import ToolReader
from gateway.tools.forced import Callee, Mark, ObjectCalls
from gateway.tools.marked import MarkedReader

OPENING: Final = "<tool_call>"
CLOSING: Final = "</tool_call>"
_CALLS: Final = ObjectCalls(
    "arguments", between=("\n", CLOSING, "\n", OPENING, "\n"), end=("\n", CLOSING)
)


class Hermes:
    """Qwen2.5, Qwen3, Hermes 2 and 3 and others."""

    @property
    def marker(self) -> str:
        return OPENING

    @property
    def markers(self) -> Sequence[str]:
        return (OPENING, CLOSING)

    def reader(self) -> ToolReader:
        return MarkedReader(OPENING, CLOSING)

    def opening(self, name: str | None) -> str:
        return f"{OPENING}\n{_CALLS.head(name)}"

    def grammar(self, callees: Sequence[Callee], mark: Mark, *, is_named: bool) -> str:
        return _CALLS.grammar(callees, mark, is_named=is_named)

    def call_id(self, digest: str) -> str:
        return f"call_{digest[:24]}"
