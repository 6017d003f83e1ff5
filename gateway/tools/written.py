"""Calls of earlier answers as text, for chat templates that write only content. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def with_calls_in_text(
    messages: Sequence[Mapping[str, Any]], write: Callable[[list[str]], str]
) -> list[Mapping[str, Any]]:
    """Return messages whose calls stand behind their content.

    Args:
        messages: As most templates read them.
        write: Returns the text of the calls of one message, given each one's object.
    """
    return [
        _with_calls(message, write) if "tool_calls" in message else message for message in messages
    ]


def _with_calls(message: Mapping[str, Any], write: Callable[[list[str]], str]) -> Mapping[str, Any]:
    objects = [json.dumps(call["function"], ensure_ascii=False) for call in message["tool_calls"]]
    # Without the calls themselves, so that no template writes them twice.
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**others, "content": f"{message['content']}{write(objects)}"}
