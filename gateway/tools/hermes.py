"""Hermes and Qwen: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` for each call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from gateway.tools.calls import ToolReader
from gateway.tools.marked import MarkedReader

OPENING: Final = "<tool_call>"
_CLOSING: Final = "</tool_call>"


class Hermes:
    """Qwen2.5, Qwen3, Hermes 2 and 3, SmolLM3 and others."""

    @property
    def markers(self) -> Sequence[str]:
        return (OPENING, _CLOSING)

    def reader(self) -> ToolReader:
        return MarkedReader(OPENING, _CLOSING)

    def opening(self, name: str | None) -> str:
        if name is None:
            return f'{OPENING}\n{{"name": "'
        return f'{OPENING}\n{{"name": {json.dumps(name)}, "arguments":'

    def call_id(self, digest: str) -> str:
        return f"call_{digest[:24]}"
