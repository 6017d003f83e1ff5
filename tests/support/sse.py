"""Server-sent events as a test reads them."""

import json
from typing import Any


def events_of(text: str) -> list[Any]:
    """Return the data of a stream's events; comments are left out."""
    data = [data for _, data in numbered_events_of(text)]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def numbered_events_of(text: str) -> list[tuple[str | None, str]]:
    """Return id and data of a stream's events; comments are left out."""
    events = []
    for event in text.split("\n\n"):
        if event and not event.startswith(":"):
            *ids, data = event.split("\n")
            assert data.startswith("data: ")
            assert all(line.startswith("id: ") for line in ids)
            number = ids[0].removeprefix("id: ") if ids else None
            events.append((number, data.removeprefix("data: ")))
    return events


def typed_events_of(text: str) -> list[tuple[str, Any]]:
    """Return name and data of a stream's events that have names."""
    events = []
    for event in text.split("\n\n"):
        if event and not event.startswith(":"):
            name, data = event.split("\n")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events
