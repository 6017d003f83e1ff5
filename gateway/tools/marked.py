"""Calls between markers, with text around them: what Hermes and Mistral have in common. Pure."""

from __future__ import annotations

from gateway.text import overlap
from gateway.tools.calls import CallScanner, Parsed


class MarkedReader:
    """Reads text in which a marker begins calls.

    White space around calls is no text: models set calls off by line feeds.

    Args:
        opening: The marker.
        closing: What ends a call; "" where nothing does.
        is_list: Whether a list of calls may follow the marker.
    """

    def __init__(self, opening: str, closing: str = "", *, is_list: bool = False) -> None:
        self.num_calls = 0
        self._opening = opening
        self._closing = closing
        self._takes_list = is_list
        self._held = ""
        self._scanner: CallScanner | None = None
        self._is_list = False
        self._follows = False
        self._is_behind_call = False

    def feed(self, text: str) -> Parsed:
        self._held += text
        parsed = Parsed()
        while self._advance(parsed):
            pass
        return parsed

    def flush(self) -> Parsed:
        parsed = Parsed()
        if self._scanner is not None and not self._scanner.has_name:
            parsed.text = self._opening + self._scanner.raw + self._held
        elif self._scanner is None and not self._follows:
            parsed.text = "" if self.num_calls and not self._held.strip() else self._held
        self._held, self._scanner = "", None
        return parsed

    def _advance(self, parsed: Parsed) -> bool:
        """Take one step; return whether another may be possible with what is held."""
        if self._scanner is not None:
            return self._in_call(self._scanner, parsed)
        if self._follows:
            return self._after_call()
        return self._in_text(parsed)

    def _in_text(self, parsed: Parsed) -> bool:
        if self._is_behind_call:
            self._held = self._held.lstrip()
            self._is_behind_call = not self._held
        at = self._held.find(self._opening)
        if at >= 0:
            parsed.text += self._held[:at].rstrip()
            self._held = self._held[at + len(self._opening) :]
            self._begin()
            return True
        end = len(self._held) - overlap(self._held, self._opening)
        # White space may be what sets a call off.
        end = len(self._held[:end].rstrip())
        parsed.text += self._held[:end]
        self._held = self._held[end:]
        return False

    def _begin(self) -> None:
        self._scanner = CallScanner(self.num_calls)
        self._is_list = False

    def _in_call(self, scanner: CallScanner, parsed: Parsed) -> bool:
        if not scanner.raw and self._takes_list and not self._is_list:
            self._held = self._held.lstrip()
            if self._held.startswith("["):
                self._is_list, self._held = True, self._held[1:]
        if not self._held:
            return False
        parts, rest = scanner.feed(self._held)
        parsed.calls += parts
        if scanner.has_name:
            self.num_calls = max(self.num_calls, parts[0].index + 1 if parts else self.num_calls)
        if rest is None:
            self._held = ""
            return False
        if not scanner.has_name:
            parsed.text += self._opening + scanner.raw
        self._held, self._scanner, self._follows = rest, None, True
        self._is_behind_call = scanner.has_name
        return True

    def _after_call(self) -> bool:
        """Skip what ends a call, or begin the next one of a list."""
        self._held = self._held.lstrip()
        if not self._held:
            return False
        if self._is_list:
            first, self._held = self._held[0], self._held[1:]
            if first == ",":
                self._follows, self._scanner = False, CallScanner(self.num_calls)
            else:
                self._is_list, self._follows = False, bool(self._closing)
            return True
        if self._closing and self._held.startswith(self._closing):
            self._held = self._held[len(self._closing) :]
        elif self._closing and self._closing.startswith(self._held):
            return False
        self._follows = False
        return True
