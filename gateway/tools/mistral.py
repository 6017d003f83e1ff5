"""Older Mistral: ``[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.tools.calls import ToolReader
from gateway.tools.forced import Callee, Mark, ObjectCalls
from gateway.tools.marked import MarkedReader

MARKER: Final = "[TOOL_CALLS]"
_CALLS: Final = ObjectCalls("arguments", between=(", ",), end=("]",))


class Mistral:
    """Mistral 7B v0.3, Nemo, Small up to 2409."""

    @property
    def marker(self) -> str:
        return MARKER

    @property
    def markers(self) -> Sequence[str]:
        return (MARKER,)

    def reader(self) -> ToolReader:
        return MarkedReader(MARKER, is_list=True)

    def opening(self, name: str | None) -> str:
        return f"{MARKER}[{_CALLS.head(name)}"

    def grammar(self, callees: Sequence[Callee], mark: Mark, *, is_named: bool) -> str:
        return _CALLS.grammar(callees, mark, is_named=is_named)

    def call_id(self, digest: str) -> str:
        # Its templates refuse ids of any other length.
        return digest[:9]
