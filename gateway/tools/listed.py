"""Calls in a list behind a marker: ``MARKER[{"name": ..., "arguments": {...}}, ...]``."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.tools.calls import ToolReader
from gateway.tools.forced import Callee, Mark, ObjectCalls
from gateway.tools.marked import MarkedReader


class ListedCalls:
    """A marker, and behind it a list of calls.

    Args:
        closing: What follows the list; "" where nothing does.
    """

    def __init__(self, marker: str, closing: str = "") -> None:
        self._marker = marker
        self._closing = closing
        end = ("]", closing) if closing else ("]",)
        self._calls = ObjectCalls("arguments", between=(", ",), end=end)

    @property
    def marker(self) -> str:
        return self._marker

    @property
    def markers(self) -> Sequence[str]:
        return (self._marker, self._closing) if self._closing else (self._marker,)

    def reader(self) -> ToolReader:
        return MarkedReader(self._marker, self._closing, is_list=True)

    def opening(self, name: str | None) -> str:
        return f"{self._marker}[{self._calls.head(name)}"

    def grammar(self, callees: Sequence[Callee], mark: Mark, *, is_named: bool) -> str:
        return self._calls.grammar(callees, mark, is_named=is_named)

    def call_id(self, digest: str) -> str:
        return f"call_{digest[:24]}"
