"""The grammar of an answer that must be calls: what follows the opening in the prompt. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.constraints import OBJECT, json_rule

Mark = Callable[[str], str]
"""Returns a text as a grammar writes it, or its token where it is a special one."""


@dataclass(frozen=True, slots=True)
class Callee:
    """A function that an answer may call.

    Attributes:
        parameters: JSON schema of its arguments, which are always an object.
    """

    name: str
    parameters: Mapping[str, Any] | None = None

    @property
    def schema(self) -> Mapping[str, Any]:
        """The schema that its arguments are held to."""
        return {**OBJECT, **(self.parameters or {})}


def literal(text: str) -> str:
    """Return a text as a grammar writes it."""
    return json.dumps(text)


@dataclass(frozen=True, slots=True)
class ObjectCalls:
    """Calls that are objects, ``{"name": ..., <key>: {...}}``.

    Attributes:
        key: Of the arguments.
        between: What stands between two calls, cut where a piece may be a special token.
        end: What stands after the last.
    """

    key: str
    between: tuple[str, ...]
    end: tuple[str, ...] = ()

    def head(self, name: str | None) -> str:
        """Return how a call begins, as far as it is known before its function is."""
        if name is None:
            return '{"name": "'
        return f'{{"name": {json.dumps(name)}, "{self.key}":'

    def grammar(self, callees: Sequence[Callee], mark: Mark, *, is_named: bool) -> str:
        """Return the grammar of what follows the first `head`.

        Args:
            callees: The functions that may be called.
            mark: Writes ``between`` and ``end``.
            is_named: There is one, which the head names, and it is called once; else any,
                once or more.
        """
        end = [mark(piece) for piece in self.end]
        if is_named:
            return grammar_of(callees, [literal(" ") + "?", "arguments_0", literal("}"), *end])
        between = [*map(mark, self.between), literal(self.head(None))]
        calls = [
            f"{literal(self._rest(callee.name))} arguments_{number} {literal('}')}"
            for number, callee in enumerate(callees)
        ]
        return grammar_of(callees, ["call", f"({' '.join(between)} call)*", *end], calls)

    def _rest(self, name: str) -> str:
        return f"{self.head(name)} ".removeprefix(self.head(None))


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """Calls that are a name and an object, each piece between markers.

    Attributes:
        opening: Stands before the name.
        middle: Stands before the object.
    """

    opening: str
    middle: str

    def head(self, name: str | None) -> str:
        """Return how a call begins, as far as it is known before its function is."""
        return self.opening if name is None else f"{self.opening}{name}{self.middle}"

    def grammar(self, callees: Sequence[Callee], mark: Mark, *, is_named: bool) -> str:
        """Return the grammar of what follows the first `head`, as `ObjectCalls.grammar` does."""
        if is_named:
            return grammar_of(callees, ["arguments_0"])
        calls = [
            f"{literal(callee.name)} {mark(self.middle)} arguments_{number}"
            for number, callee in enumerate(callees)
        ]
        return grammar_of(callees, ["call", f"({mark(self.opening)} call)*"], calls)


def grammar_of(callees: Sequence[Callee], start: Sequence[str], calls: Sequence[str] = ()) -> str:
    """Return a grammar: its start, what ``call`` may be, and the arguments of each function."""
    lines = [f"start: {' '.join(start)}"]
    if calls:
        lines.append(f"call: {' | '.join(calls)}")
    lines += [f"arguments_{n}: {json_rule(callee.schema)}" for n, callee in enumerate(callees)]
    return "\n".join(lines)
