"""Calls of tools in streamed text: what all formats have in common. Pure.

A format's reader takes the text of an answer piece by piece and gives back what is text for
the client and what is part of a call. What looked like a call and is none is text after all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from gateway.tools.forced import Callee, Mark

# The usual order, in which arguments can be passed on before the call is complete.
_HEAD: Final = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


@dataclass(frozen=True, slots=True)
class CallPart:
    """What a piece adds to a call.

    Attributes:
        index: Which call of the answer.
        name: Of the function, on the first part of a call; None on the others.
        arguments: Text that follows the arguments so far; together they are a JSON object.
    """

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Parsed:
    """What came out of a piece of text.

    Attributes:
        reasoning: What the model thinks before it answers, where its format parts that.
    """

    text: str = ""
    calls: list[CallPart] = field(default_factory=list)
    reasoning: str = ""

    def add(self, other: Parsed) -> None:
        """Add what came out of the next piece."""
        self.text += other.text
        self.calls += other.calls
        self.reasoning += other.reasoning


class ToolReader(Protocol):
    """Reads the text of one answer."""

    @property
    def num_calls(self) -> int:
        """How many calls have begun."""

    def feed(self, text: str) -> Parsed:
        """Take the next piece."""

    def flush(self) -> Parsed:
        """Return what was held: the answer is over."""


class ToolFormat(Protocol):
    """How models of a family write calls."""

    @property
    def marker(self) -> str:
        """What begins calls amid text; "": an answer that begins with an object is a call."""

    @property
    def markers(self) -> Sequence[str]:
        """Tokens that begin or end calls; the reader sees them also where they are special."""

    def reader(self) -> ToolReader:
        """Return a reader for one answer."""

    def opening(self, name: str | None) -> str:
        """Return how an answer begins that must be a call, of one function or of any."""

    def grammar(self, callees: Sequence[Callee], mark: Mark, *, is_named: bool) -> str:
        """Return the grammar of what follows the opening, see `ObjectCalls.grammar`."""

    def call_id(self, digest: str) -> str:
        """Return the id of a call, from hexadecimal digits that are its own."""


@runtime_checkable
class ShapesMessages(Protocol):
    """A format whose chat template does not read messages and tools as most templates do."""

    def for_template(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]] | None]:
        """Return messages and tools as the template reads them.

        Args:
            messages: As most templates read them.
            tools: That may be called; None: none.
        """


class Nesting:
    """How deep in objects and lists a text of JSON is, character by character."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = False
        self._is_escaped = False

    def take(self, char: str) -> bool:
        """Take the next character; return whether it can be a part of an object or a list."""
        if self._in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\":
                self._is_escaped = True
            elif char == '"':
                self._in_string = False
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self.depth += 1
        elif char in "}]":
            self.depth -= 1
        else:
            return self.depth > 0 or char.isspace()
        return True


class CallScanner:
    """Reads one call, a JSON object with a name and arguments, piece by piece.

    ``index`` is that of the call in the answer.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._buffer = ""
        self._scanned = 0
        self._nesting = Nesting()
        self._has_name = False
        self._sent = -1
        self._arguments_end: int | None = None

    @property
    def has_name(self) -> bool:
        """Whether a part of the call was given out."""
        return self._has_name

    @property
    def raw(self) -> str:
        """All text so far."""
        return self._buffer

    def feed(self, text: str) -> tuple[list[CallPart], str | None]:
        """Take the next piece; return parts of the call, and what follows its end or None.

        When the end is there and `has_name` is false, it was no call.
        """
        self._buffer += text
        parts: list[CallPart] = []
        if not self._has_name and (head := _HEAD.match(self._buffer)):
            self._has_name = True
            self._sent = head.end()
            parts.append(CallPart(self._index, name=json.loads(head[1], strict=False)))
        end = self._scan()
        if self._sent >= 0:
            until = self._scanned if self._arguments_end is None else self._arguments_end
            if until > self._sent:
                parts.append(CallPart(self._index, arguments=self._buffer[self._sent : until]))
                self._sent = until
        if end is None:
            return parts, None
        if not self._has_name:
            parts += self._whole(self._buffer[:end])
        rest, self._buffer = self._buffer[end:], self._buffer[:end]
        return parts, rest

    def _scan(self) -> int | None:
        """Go on to the end of the object; return where that is, None if it is still to come."""
        nesting = self._nesting
        for at in range(self._scanned, len(self._buffer)):
            self._scanned = at + 1
            before = nesting.depth
            if not nesting.take(self._buffer[at]):
                return at  # No object begins here.
            if nesting.depth < before:
                if nesting.depth == 1 and self._sent >= 0 and self._arguments_end is None:
                    self._arguments_end = at + 1
                if nesting.depth <= 0:
                    return at + 1
        return None

    def _whole(self, text: str) -> list[CallPart]:
        """Return a call whose name does not come first, or nothing if it is none."""
        try:
            found = json.loads(text)
        except ValueError:
            return []
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            return []
        arguments: Any = found.get("arguments", found.get("parameters", {}))
        if isinstance(arguments, str):
            arguments_text = arguments
        else:
            arguments_text = json.dumps(arguments, ensure_ascii=False)
        self._has_name = True
        return [
            CallPart(self._index, name=found["name"]),
            CallPart(self._index, arguments=arguments_text),
        ]
