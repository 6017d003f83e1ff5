"""Llama 3: the answer is ``{"name": ..., "parameters": {...}}``, several with ``;`` between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.tools.calls import CallScanner, Parsed, ToolReader
from gateway.tools.forced import Callee, Mark, ObjectCalls

MARKER: Final = "<|python_tag|>"
_CALLS: Final = ObjectCalls("parameters", between=("; ",))


class Llama3:
    """Llama 3.1, 3.2 and 3.3."""

    @property
    def marker(self) -> str:
        # The other one is left out by most models.
        return ""

    @property
    def markers(self) -> Sequence[str]:
        return (MARKER,)

    def reader(self) -> ToolReader:
        return Llama3Reader()

    def opening(self, name: str | None) -> str:
        return _CALLS.head(name)

    def grammar(self, callees: Sequence[Callee], mark: Mark, *, is_named: bool) -> str:
        return _CALLS.grammar(callees, mark, is_named=is_named)

    def call_id(self, digest: str) -> str:
        return f"call_{digest[:24]}"


class Llama3Reader:
    """An answer that does not begin with an object is text to its end."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""
        self._scanner: CallScanner | None = None
        self._is_text = False

    def feed(self, text: str) -> Parsed:
        parsed = Parsed()
        self._held += text
        while not self._is_text and self._advance(parsed):
            pass
        if self._is_text:
            parsed.text += self._held
            self._held = ""
        return parsed

    def flush(self) -> Parsed:
        scanner, held = self._scanner, self._held
        self._scanner, self._held = None, ""
        if scanner is not None and not scanner.has_name:
            return Parsed(scanner.raw + held)
        return Parsed("" if self.num_calls else held)

    def _advance(self, parsed: Parsed) -> bool:
        """Take one step; return whether another may be possible with what is held."""
        if self._scanner is None:
            start = self._held.lstrip(" \n;" if self.num_calls else " \n")
            if not start or MARKER.startswith(start):
                return False
            if start.startswith(MARKER):
                self._held = start[len(MARKER) :]
                return True
            if not start.startswith("{"):
                self._is_text = True
                return False
            self._held, self._scanner = start, CallScanner(self.num_calls)
        parts, rest = self._scanner.feed(self._held)
        parsed.calls += parts
        if parts:
            self.num_calls = parts[0].index + 1
        if rest is None:
            self._held = ""
            return False
        if not self._scanner.has_name:
            parsed.text += self._scanner.raw
            self._is_text = True
        self._held, self._scanner = rest, None
        return True
