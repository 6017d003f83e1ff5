"""API keys and requests as tables for a terminal. From the gateway's JSON to rich; no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from fog.quantities import format_seconds

Json = Mapping[str, Any]

_STATE_STYLES: Final = {
    "good": "green",
    "waiting": "yellow",
    "answering": "green",
    "failed": "red",
}


def keys_table(keys: Sequence[Json], now: float) -> Table:
    """Return one row per key; ``now`` in UTC seconds."""
    table = _table(("id", "name", "scope", "state"), ("requests/min", "tokens/min", "at once"))
    table.add_column("expires")
    for key in keys:
        table.add_row(
            str(key.get("id", "?")),
            Text(str(key.get("name", "?"))),
            str(key.get("scope", "?")),
            _state(key),
            *(
                str(key.get(name) or "-")
                for name in ("requests_per_minute", "tokens_per_minute", "concurrency")
            ),
            _expiry(key.get("expires_at"), now),
        )
    return table


def requests_table(requests: Sequence[Json]) -> Table:
    """Return one row per request."""
    table = _table(("request", "from", "state"), ("prompt", "answer", "TTFT", "seconds"))
    for request in requests:
        ttft = request.get("ttft_seconds")
        table.add_row(
            str(request.get("id", "?")),
            Text(str(request.get("caller", "?"))),
            _state(request),
            str(request.get("prompt_tokens", "-")),
            str(request.get("answer_tokens", "-")),
            "-" if ttft is None else format_seconds(ttft),
            f"{request.get('seconds', 0):.1f}",
        )
    return table


def _table(texts: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in texts:
        table.add_column(column)
    for column in figures:
        table.add_column(column, justify="right")
    return table


def _state(entry: Json) -> Text:
    state = str(entry.get("state", "?"))
    return Text(state, style=_STATE_STYLES.get(state, ""))


def _expiry(expires_at: float | None, now: float) -> str:
    if expires_at is None:
        return "never"
    hours = (expires_at - now) / 3600
    if hours <= 0:
        return "over"
    return f"in {hours / 24:.0f} d" if hours >= 48 else f"in {hours:.1f} h"
