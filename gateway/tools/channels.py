"""Messages in channels, as gpt-oss writes them: what is shown, what is thought, what is called.

Pure. An answer is ``<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final
<|message|>...<|return|>``, see https://github.com/openai/harmony/blob/main/docs/format.md.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from gateway.tools.calls import CallPart, Parsed

START: Final = "<|start|>"
CHANNEL: Final = "<|channel|>"
CONSTRAIN: Final = "<|constrain|>"
MESSAGE: Final = "<|message|>"
END: Final = "<|end|>"
CALL: Final = "<|call|>"
RETURN: Final = "<|return|>"
MARKERS: Final = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
FUNCTIONS: Final = "functions."
"""The namespace of the functions that a request has."""

_ENDS: Final = (END, CALL, RETURN)
_WRITTEN: Final = re.compile("|".join(re.escape(marker) for marker in MARKERS))
_CHANNEL: Final = re.compile(rf"{re.escape(CHANNEL)}\s*(\w+)")
# In the role or in the channel of a header.
_RECIPIENT: Final = "to="
_TO: Final = re.compile(rf"{_RECIPIENT}([^\s<]+)")


class _Kind(Enum):
    SHOWN = auto()
    THOUGHT = auto()
    CALLED = auto()


class ChannelReader:
    """Reads an answer that goes on behind ``<|start|>assistant``.

    Markers are told from text that looks like them, as only the tokens count. An answer
    without any is shown as it is.

    Args:
        takes_calls: Whether there are functions; else what would call one is a thought.
    """

    def __init__(self, *, takes_calls: bool) -> None:
        self.num_calls = 0
        self._takes_calls = takes_calls
        # Of the message that begins; None: it has begun.
        self._header: str | None = ""
        self._has_marker = False
        self._kind = _Kind.SHOWN
        # What parts a message from an earlier one of its kind.
        self._gap = ""
        self._said: set[_Kind] = set()

    def feed(self, text: str) -> Parsed:
        """Take the next text that is no marker."""
        if self._header is None:
            return self._content(text)
        self._header += text
        if self._has_marker or _may_begin(self._header.lstrip(), _RECIPIENT):
            return Parsed()
        text, self._header = self._header, None
        return self._content(text)

    def mark(self, marker: str) -> Parsed:
        """Take the next marker, one of `MARKERS`."""
        self._has_marker = True
        if marker in _ENDS:
            self._header = ""
        elif marker in (START, CHANNEL):
            # Also where the message before was not ended.
            self._header = (self._header or "") + marker
        elif self._header is not None:
            if marker == MESSAGE:
                return self._begin(self._header)
            self._header += " "
        return Parsed()

    def feed_written(self, text: str) -> Parsed:
        """Take text in which markers are written out, such as the end of a prompt."""
        parsed, at = Parsed(), 0
        for found in _WRITTEN.finditer(text):
            parsed.add(self.feed(text[at : found.start()]))
            parsed.add(self.mark(found[0]))
            at = found.end()
        parsed.add(self.feed(text[at:]))
        return parsed

    def flush(self) -> Parsed:
        """Return what was held: the answer is over. A header that was cut off is nothing."""
        held, self._header = self._header, None
        return Parsed(held or "") if not self._has_marker else Parsed()

    def _begin(self, header: str) -> Parsed:
        """Begin the content of the message with a header."""
        self._header = None
        channel, to = _CHANNEL.search(header), _TO.search(header)
        is_thought = channel is not None and channel[1] == "analysis"
        # Tools that are built in are called in the analysis; here are none.
        if to is not None and self._takes_calls and (to[1].startswith(FUNCTIONS) or not is_thought):
            self._kind = _Kind.CALLED
            part = CallPart(self.num_calls, name=to[1].removeprefix(FUNCTIONS))
            self.num_calls += 1
            return Parsed(calls=[part])
        self._kind = _Kind.THOUGHT if is_thought or to is not None else _Kind.SHOWN
        self._gap = "\n" if self._kind in self._said else ""
        return Parsed()

    def _content(self, text: str) -> Parsed:
        if not text:
            return Parsed()
        if self._kind is _Kind.CALLED:
            return Parsed(calls=[CallPart(self.num_calls - 1, arguments=text)])
        text, self._gap = self._gap + text, ""
        self._said.add(self._kind)
        return Parsed(reasoning=text) if self._kind is _Kind.THOUGHT else Parsed(text)


def _may_begin(text: str, start: str) -> bool:
    """Whether a text, or one that goes on from it, begins with ``start``."""
    return text.startswith(start) or start.startswith(text)
