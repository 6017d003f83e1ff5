"""What is wrong with a text that `tomllib` refuses: the line, and words for who wrote it. Pure."""

from __future__ import annotations

import re
import tomllib
from typing import Final

_AT_LINE: Final = re.compile(r"(.*) \(at line (\d+), column \d+\)", re.DOTALL)
_AT_END: Final = " (at end of document)"
_TRIPLES: Final = ('"""', "'''")
_BARE: Final = ("Invalid value", "Expected newline")
_SHOWN_CHARACTERS: Final = 60


def describe_fault(text: str, error: tomllib.TOMLDecodeError) -> tuple[int, str]:
    """Return the line, 1-based, and what is wrong there.

    Args:
        text: What was parsed.
        error: What the parser said.
    """
    lines = text.splitlines() or [""]
    found = _AT_LINE.fullmatch(str(error))
    if found is not None:
        number, what = min(int(found[2]), len(lines)), found[1]
    else:
        # Something was never closed: the parser names the end, a person needs the beginning.
        number, what = _line_of_the_open_value(lines), str(error).removesuffix(_AT_END)
    line = lines[number - 1].strip()
    if not any(triple in line for triple in _TRIPLES) and _has_open_quote(line):
        what = "a quote has no partner"
    elif what.startswith(_BARE) and not any(quote in line for quote in "\"'"):
        # `id = pi`, or `model_memory = 60 %`.
        what += ' (text stands in quotes, as in id = "pi")'
    if len(line) > _SHOWN_CHARACTERS:
        line = line[:_SHOWN_CHARACTERS] + " ..."
    return number, f"{what}: {line}" if line else what


def _line_of_the_open_value(lines: list[str]) -> int:
    """Return the last line that begins a long string, else the last one with a key."""
    for number in range(len(lines), 0, -1):
        if any(lines[number - 1].count(triple) % 2 for triple in _TRIPLES):
            return number
    for number in range(len(lines), 0, -1):
        if "=" in lines[number - 1]:
            return number
    return len(lines)


def _has_open_quote(line: str) -> bool:
    """Return whether a one-line string that begins in the line does not end there."""
    quote, is_escaped = "", False
    for character in line:
        if is_escaped:
            is_escaped = False
        elif quote:
            if character == quote:
                quote = ""
            # Single quotes know no escapes.
            is_escaped = character == "\\" and quote == '"'
        elif character in "\"'":
            quote = character
        elif character == "#":
            return False
    return bool(quote)
