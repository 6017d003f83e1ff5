"""Calls of tools as clients see them: with ids, and told from the rest of an answer. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gateway.tools.calls import CallPart, Parsed
from gateway.tools.channels import ChannelReader
from gateway.tools.schemas import ToolUse


@dataclass(frozen=True, slots=True)
class ShownCall:
    """A call of a tool, or in a stream what is added to it; id and name come first."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


class CallText:
    """Tells the calls of tools in an answer's text from the rest.

    Args:
        key: The answer's own; ids of calls follow from it, so a resumed answer has them again.
    """

    def __init__(self, use: ToolUse, key: str) -> None:
        self._use = use
        self._key = key
        self._reader = use.reader()
        # How the answer must begin is part of the prompt, and of the call.
        self._begun: list[CallPart] = []
        if isinstance(self._reader, ChannelReader):
            self._begun = self._reader.feed_written(use.opening).calls
        elif use.opening:
            self._begun = self._reader.feed(use.opening).calls

    @property
    def num_calls(self) -> int:
        """How many calls have begun."""
        return self._reader.num_calls

    @property
    def has_channels(self) -> bool:
        """Whether markers are tokens, told from text that looks like them."""
        return isinstance(self._reader, ChannelReader)

    def take(
        self, text: str, marker: str = "", *, is_last: bool
    ) -> tuple[Parsed, tuple[ShownCall, ...]]:
        """Take the next text, and a marker behind it; return what of it is text, and calls."""
        parsed = self._reader.feed(text)
        if marker and isinstance(self._reader, ChannelReader):
            parsed.add(self._reader.mark(marker))
        if is_last:
            parsed.add(self._reader.flush())
        parts, self._begun = [*self._begun, *parsed.calls], []
        return parsed, tuple(self._shown(part) for part in parts)

    def _shown(self, part: CallPart) -> ShownCall:
        if part.name is None:
            return ShownCall(part.index, part.arguments)
        digest = hashlib.sha256(f"{self._key}/{part.index}".encode()).hexdigest()
        call_id = self._use.format.call_id(digest)
        return ShownCall(part.index, part.arguments, call_id, part.name)
