"""Granite: ``<|tool_call|>[{"name": ..., "arguments": {...}}, ...]``."""

from __future__ import annotations

from typing import Final

from gateway.tools.listed import ListedCalls

MARKER: Final = "<|tool_call|>"


class Granite(ListedCalls):
    """Granite 3.1 to 3.3; 4 writes calls as Hermes does."""

    def __init__(self) -> None:
        super().__init__(MARKER)
