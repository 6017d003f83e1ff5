"""Answers that may be calls, and else are text or JSON: their grammars, how JSON is read. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.tools.calls import Parsed, ToolFormat, ToolReader
from gateway.tools.forced import Callee, Mark, literal

_ANY: Final = "/(?s:.*)/"
# Of a call that the model begins by itself; templates differ in it.
_GAP: Final = "/[ \\n]?/"


def text_or_calls(form: ToolFormat, callees: Sequence[Callee], mark: Mark, others: str) -> str:
    """Return the grammar of text that may have calls in it, of these functions and no others.

    What would be read as a call is one: text cannot have the marker in it.

    Args:
        form: How calls are written.
        callees: The functions that may be called.
        mark: Writes the format's markers.
        others: The special tokens that text may have in it, as a grammar writes them; "": none.
    """
    if not form.marker:
        return _text_or_call(form, callees, mark)
    marker = mark(form.marker)
    is_token = marker != literal(form.marker)
    rules = [
        f"start: (with_call{' | with_other' if others else ''})* TEXT",
        f"with_call: begin {_calls(form)}",
        # Lazy: it ends, and the call has begun, where the marker is complete.
        f"begin{'' if is_token else '[lazy]'}: {'TEXT' if is_token else _ANY} {marker}",
        f"TEXT: {_ANY} & ~({_ANY} {literal(form.marker)} {_ANY})",
    ]
    if others:
        # They are not shown, so one within a marker would not keep it from being read.
        begun = [form.marker[:length] for length in range(1, len(form.marker))]
        rules += [
            f"with_other: PART {others}",
            f"PART: TEXT & ~({_ANY} ({' | '.join(map(literal, begun))}))",
        ]
    return "\n".join([*rules, _rules_of_calls(form, callees, mark)])


def json_or_calls(form: ToolFormat, callees: Sequence[Callee], mark: Mark, json_rule: str) -> str:
    """Return the grammar of an answer that is JSON, or calls of these functions.

    Args:
        form: How calls are written, with a marker: those without one are JSON themselves.
        callees: The functions that may be called.
        mark: Writes the format's markers.
        json_rule: What the answer is that calls nothing.
    """
    start = f"start: {mark(form.marker)} {_calls(form)} | answer"
    return "\n".join([start, f"answer: {json_rule}", _rules_of_calls(form, callees, mark)])


def _text_or_call(form: ToolFormat, callees: Sequence[Callee], mark: Mark) -> str:
    (marker,) = form.markers
    rules = [
        f"start: TEXT | /[ \\n]*/ {mark(marker)}? {_calls(form)}",
        # White space before an object, or before the marker, keeps neither from being read.
        f"TEXT: /[ \\n]*([^ \\n{{](?s:.*))?/ & ~(/[ \\n]*/ {literal(marker)} {_ANY})",
    ]
    return "\n".join([*rules, _rules_of_calls(form, callees, mark)])


def _calls(form: ToolFormat) -> str:
    """Return calls behind their marker."""
    head = form.opening(None).removeprefix(form.marker).lstrip()
    return f"{_GAP} {literal(head)} calls" if head else "calls"


def _rules_of_calls(form: ToolFormat, callees: Sequence[Callee], mark: Mark) -> str:
    rules = form.grammar(callees, mark, is_named=False)
    return f"calls:{rules.removeprefix('start:')}"


class BeginningReader:
    """Reads an answer whose first text says whether all of it is calls, or JSON.

    JSON may have a marker in its strings.

    Args:
        calls: Reads the answer where it is calls.
        marker: What it then begins with.
    """

    def __init__(self, calls: ToolReader, marker: str) -> None:
        self._calls = calls
        self._marker = marker
        self._held = ""
        self._is_calls: bool | None = None

    @property
    def num_calls(self) -> int:
        return self._calls.num_calls

    def feed(self, text: str) -> Parsed:
        if self._is_calls is None:
            text, self._held = self._held + text, ""
            if len(text) < len(self._marker) and self._marker.startswith(text):
                self._held = text
                return Parsed()
            self._is_calls = text.startswith(self._marker)
        return self._calls.feed(text) if self._is_calls else Parsed(text)

    def flush(self) -> Parsed:
        return self._calls.flush() if self._is_calls else Parsed(self._held)
