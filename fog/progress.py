"""What is shown while a fog starts: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fog.client import Readiness
from fog.processes import ProcessState
from fog.quantities import format_bytes

_MARKS: Final = {
    ProcessState.WAITING: ("·", "dim"),
    ProcessState.STARTING: ("…", "yellow"),
    ProcessState.READY: ("✓", "green"),
    ProcessState.RESTARTING: ("↻", "red"),
    ProcessState.FAILED: ("✗", "red"),
    ProcessState.STOPPED: ("·", "dim"),
}


BRIEF_CHARACTERS: Final = 100

_BYTES: Final = re.compile(r"\d[\d.]* [kMGT]?B\b")
_SECONDS_BETWEEN_BYTES: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is known of a starting fog at one moment.

    Attributes:
        processes: Name to state of each child, in order of start.
        details: Name to why it is in that state, where that is of interest.
        readiness: The gateway's answer; None while it does not answer.
        devices: ``GET /fog/devices``.
    """

    elapsed_seconds: float
    processes: Mapping[str, ProcessState] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    readiness: Readiness | None = None
    devices: Sequence[Mapping[str, Any]] = ()

    @property
    def headline(self) -> str:
        """What the fog waits for, in one line."""
        for name, state in self.processes.items():
            if state is ProcessState.RESTARTING:
                return f"{name} {self.details.get(name, 'restarts')}"
        if self.readiness is not None:
            return self.readiness.reason or ("ready" if self.readiness.ready else "not ready yet")
        late = [n for n, s in self.processes.items() if s is not ProcessState.READY]
        if not late:
            return "waiting for the gateway"
        return f"starting {', '.join(late) if len(late) <= 4 else f'{len(late)} processes'}"

    @property
    def advance(self) -> float:
        """A number that grows with every step towards readiness, for a patient wait."""
        started = sum(state is ProcessState.READY for state in self.processes.values())
        present: int = sum(device.get("state") == "ready" for device in self.devices)
        loaded_bytes = float(sum(device.get("loaded_bytes") or 0 for device in self.devices))
        progress: float = (self.readiness.progress or 0.0) if self.readiness else 0.0
        # Bytes without end, brought into 0..1: however many, one more is a step.
        return started + present + progress + loaded_bytes / (loaded_bytes + 1e9)

    @property
    def brief(self) -> str:
        """The headline cut to a line: a long reason is told once, when the wait ends."""
        text = self.headline
        if len(text) <= BRIEF_CHARACTERS:
            return text
        # At the end of a part where there is one: what follows often changes while it waits.
        beginning = text[: BRIEF_CHARACTERS - len(" ...")]
        return beginning.rpartition("; " if "; " in beginning else " ")[0] + " ..."


class Display(Protocol):
    """Shows snapshots until it is closed."""

    def update(self, snapshot: Snapshot) -> None:
        """Show a newer state."""

    def close(self) -> None:
        """Take away what is only of interest while waiting."""


class LiveDisplay:
    """A table that is redrawn in place and disappears when the fog is ready."""

    def __init__(self, console: Console) -> None:
        self._spinner = Spinner("dots")
        self._live = Live(console=console, transient=True, refresh_per_second=8)
        self._live.start()

    def update(self, snapshot: Snapshot) -> None:
        """Redraw."""
        self._spinner.update(text=_spinner_text(snapshot))
        self._live.update(Group(progress_table(snapshot), self._spinner))

    def close(self) -> None:
        """Remove the table."""
        self._live.stop()


class PlainDisplay:
    """One line whenever something changes: for logs, pipes and CI.

    Bytes that are being loaded change all the time, so they alone make a line only now and then.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""
        self._last_seconds = 0.0

    def update(self, snapshot: Snapshot) -> None:
        """Print the headline if it is another one."""
        same = _BYTES.sub("", snapshot.brief) == _BYTES.sub("", self._last)
        recent = snapshot.elapsed_seconds - self._last_seconds < _SECONDS_BETWEEN_BYTES
        if snapshot.brief != self._last and not (same and recent):
            self._last, self._last_seconds = snapshot.brief, snapshot.elapsed_seconds
            text = f"{snapshot.elapsed_seconds:6.1f} s  {snapshot.brief}"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to take away."""


def make_display(console: Console, *, live: bool) -> Display:
    """Return the display that fits the console."""
    return LiveDisplay(console) if live and console.is_terminal else PlainDisplay(console)


def progress_table(snapshot: Snapshot) -> Table:
    """Return one row per process, with what its device says of itself."""
    devices = {str(device.get("id")): device for device in snapshot.devices}
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, state in snapshot.processes.items():
        mark, style = _MARKS[state]
        what = snapshot.details.get(name, "") if state is ProcessState.RESTARTING else ""
        row: list[RenderableType] = [
            Text(mark, style),
            name,
            Text(what or device_text(devices.get(name)) or state.value, "dim"),
        ]
        table.add_row(*row)
    return table


def device_text(device: Mapping[str, Any] | None) -> str:
    """Return in a few words how far a device is."""
    if device is None:
        return ""
    load_state = device.get("load_state")
    loaded, total = device.get("loaded_bytes") or 0, device.get("total_bytes") or 0
    if load_state == "failed":
        return str(device.get("error") or "failed to load")
    if load_state == "loading" and total:
        return f"loads {format_bytes(loaded)} of {format_bytes(total)}{_origin(device)}"
    if load_state == "loaded":
        # Nothing to load yet: it waits for the plan, which needs its measurements.
        measured = "measured" if device.get("memory_bytes") else "joined"
        return f"holds {format_bytes(loaded)}" if loaded else measured
    if load_state:
        return str(load_state)
    return str(device.get("state") or "")


def _origin(device: Mapping[str, Any]) -> str:
    """Return where most of a device's bytes come from, unless that is its own disk."""
    given = {str(each["source"]): each["num_bytes"] for each in device.get("sources") or ()}
    source = max(given, key=lambda name: given[name], default="folder")
    return "" if source in ("folder", "cache") else f" from {source}"


def _spinner_text(snapshot: Snapshot) -> Text:
    text = f"{snapshot.elapsed_seconds:.0f} s  {snapshot.headline}"
    readiness = snapshot.readiness
    if readiness is not None and readiness.progress is not None and not readiness.ready:
        text += f" ({readiness.progress:.0%})"
    return Text(text)
