"""Mistral: ``[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from gateway.tools.calls import ToolReader
from gateway.tools.marked import MarkedReader

MARKER: Final = "[TOOL_CALLS]"


class Mistral:
    """Mistral 7B v0.3, Nemo, Small up to 2409."""

    @property
    def markers(self) -> Sequence[str]:
        return (MARKER,)

    def reader(self) -> ToolReader:
        return MarkedReader(MARKER, is_list=True)

    def opening(self, name: str | None) -> str:
        if name is None:
            return f'{MARKER}[{{"name": "'
        return f'{MARKER}[{{"name": {json.dumps(name)}, "arguments":'

    def call_id(self, digest: str) -> str:
        # Its templates refuse ids of any other length.
        return digest[:9]
