"""Older Mistral: ``[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]``."""

from __future__ import annotations

from typing import Final

from gateway.tools.listed import ListedCalls

MARKER: Final = "[TOOL_CALLS]"


class Mistral(ListedCalls):
    """Mistral 7B v0.3, Nemo, Small up to 2409."""

    def __init__(self) -> None:
        super().__init__(MARKER)

    def call_id(self, digest: str) -> str:
        # Its templates refuse ids of any other length.
        return digest[:9]
