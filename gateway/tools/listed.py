"""Calls in a list: ``MARKER[{"name": ..., "arguments": {...}}, ...]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.tools.calls import ToolReader
from gateway.tools.forced import Callee, Mark, ObjectCalls
from gateway.tools.marked import MarkedReader

_CALLS: Final = ObjectCalls("arguments", between=(", ",), end=("]",))


class ListedCalls:
    """A marker, and behind it a list of calls that nothing else ends."""

    def __init__(self, marker: str) -> None:
        self._marker = marker

    @property
    def marker(self) -> str:
        return self._marker

    @property
    def markers(self) -> Sequence[str]:
        return (self._marker,)

    def reader(self) -> ToolReader:
        return MarkedReader(self._marker, is_list=True)

    def opening(self, name: str | None) -> str:
        return f"{self._marker}[{_CALLS.head(name)}"

    def grammar(self, callees: Sequence[Callee], mark: Mark, *, is_named: bool) -> str:
        return _CALLS.grammar(callees, mark, is_named=is_named)

    def call_id(self, digest: str) -> str:
        return f"call_{digest[:24]}"
