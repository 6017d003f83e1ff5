"""Newer Mistral: ``[TOOL_CALLS]name[ARGS]{...}`` for each call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.text import overlap
from gateway.tools.calls import CallPart, Nesting, Parsed, ToolReader
from gateway.tools.forced import Callee, Mark, NamedCalls
from gateway.tools.mistral import MARKER, Mistral

ARGS: Final = "[ARGS]"
# Some versions write an id of their own between name and arguments.
_ID: Final = "[CALL_ID]"
_CALLS: Final = NamedCalls(MARKER, ARGS)


class MistralArgs(Mistral):
    """Mistral Small 3.1 and later, Magistral, Devstral, Ministral 3."""

    @property
    def markers(self) -> Sequence[str]:
        return (MARKER, ARGS, _ID)

    def reader(self) -> ToolReader:
        return ArgsReader()

    def opening(self, name: str | None) -> str:
        return _CALLS.head(name)

    def grammar(self, callees: Sequence[Callee], mark: Mark, *, is_named: bool) -> str:
        return _CALLS.grammar(callees, mark, is_named=is_named)


class ArgsReader:
    """Reads text, then a name, then an object, and again."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""
        self._in_name = False
        self._nesting: Nesting | None = None

    def feed(self, text: str) -> Parsed:
        self._held += text
        parsed = Parsed()
        while self._advance(parsed):
            pass
        return parsed

    def flush(self) -> Parsed:
        held, self._held = self._held, ""
        if self._nesting is not None:
            return Parsed()
        if self._in_name:
            return Parsed(MARKER + held)
        return Parsed("" if self.num_calls and not held.strip() else held)

    def _advance(self, parsed: Parsed) -> bool:
        """Take one step; return whether another may be possible with what is held."""
        if self._nesting is not None:
            return self._in_arguments(self._nesting, parsed)
        if self._in_name:
            name, found, rest = self._held.partition(ARGS)
            if not found:
                return False
            self._in_name, self._held, self._nesting = False, rest.lstrip(), Nesting()
            parsed.calls.append(CallPart(self.num_calls, name=name.partition(_ID)[0].strip()))
            self.num_calls += 1
            return True
        text, found, rest = self._held.partition(MARKER)
        if found:
            parsed.text += text.rstrip()
            self._in_name, self._held = True, rest
            return True
        # White space may be what sets a call off.
        end = len(text[: len(text) - overlap(text, MARKER)].rstrip())
        parsed.text += text[:end]
        self._held = text[end:]
        return False

    def _in_arguments(self, nesting: Nesting, parsed: Parsed) -> bool:
        """Pass on what belongs to the object; it ends where the first bracket closes."""
        if not nesting.depth:
            self._held = self._held.lstrip()
        end, is_over = len(self._held), False
        for at, char in enumerate(self._held):
            before = nesting.depth
            if not nesting.take(char):
                end, is_over = at, True  # No object begins here.
                break
            if nesting.depth < before and nesting.depth <= 0:
                end, is_over = at + 1, True
                break
        if end:
            parsed.calls.append(CallPart(self.num_calls - 1, arguments=self._held[:end]))
        self._held = self._held[end:]
        if is_over:
            self._nesting, self._held = None, self._held.lstrip()
        return is_over
