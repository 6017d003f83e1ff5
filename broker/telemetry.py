"""Telemetry of a device: its fields with units and ranges, and how they are read. No I/O.

Anybody may write it: nodes, and agents of other systems that watch a device. So it is read
field by field, and what is refused takes nothing else with it. The ranges below are what the
JSON Schema in the documentation says (`schema`), so both cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.structs import fields

from broker.control import Control


def _says(unit: str, text: str) -> Meta:
    return Meta(description=text, extra_json_schema={"x-unit": unit})


_Amount = Annotated[float, Meta(ge=0)]
_Count = Annotated[int, Meta(ge=0)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_AboveZero = Annotated[float, Meta(gt=0)]
_Celsius = Annotated[float, Meta(gt=-273.15)]
# A device that says it runs ten thousand times slower, or faster, has a broken clock.
_Speed = Annotated[float, Meta(ge=1e-4, le=1e4)]
_ByReplica = dict[str, _Amount]


class Telemetry(Control, frozen=True, kw_only=True):
    """Plain JSON from a node or any IoT agent; every field is optional.

    What a field means and its unit stand beside it, its range is its type's.
    """

    cpu_load_ratio: Annotated[_Amount, _says("1", "use of all cores")] | None = None
    memory_available_bytes: (
        Annotated[_Count, _says("B", "memory that a process can still get")] | None
    ) = None
    temperature_celsius: Annotated[_Celsius, _says("°C", "the hottest sensor")] | None = None
    battery_ratio: Annotated[_Share, _says("1", "charge of the battery")] | None = None
    speed_ratio: (
        Annotated[
            _Speed,
            _says(
                "1",
                "speed now over the speed that the device measured of itself, waiting for a "
                "core left out; 0.25 is four times slower",
            ),
        ]
        | None
    ) = None
    stage_seconds: (
        Annotated[
            _ByReplica, _says("s", "replica id to the median time of its stage's decode step here")
        ]
        | None
    ) = None
    queue_length: Annotated[_Count, _says("1", "pieces of work that wait on the device")] | None = (
        None
    )
    link_latency_seconds: (
        Annotated[_Amount, _says("s", "one-way delay between device and broker")] | None
    ) = None
    link_bytes_per_second: Annotated[_AboveZero, _says("B/s", "rate of that link")] | None = None
    tokens_per_second: (
        Annotated[_Amount, _says("1/s", "rows of decode steps per second")] | None
    ) = None
    kv_used_tokens: Annotated[_Count, _says("1", "positions reserved in the KV cache")] | None = (
        None
    )
    kv_kept_tokens: (
        Annotated[
            _Count,
            _says("1", "positions of ended requests that it keeps for prompts that begin alike"),
        ]
        | None
    ) = None
    dropped_messages: (
        Annotated[_Count, _says("1", "messages refused since the node started")] | None
    ) = None
    proposed_tokens: (
        Annotated[
            _Count,
            _says(
                "1",
                "tokens that steps of this device's replicas carried as guesses, since the node "
                "started",
            ),
        ]
        | None
    ) = None
    accepted_tokens: (
        Annotated[_Count, _says("1", "guesses that came true, since the node started")] | None
    ) = None
    late_steps: (
        Annotated[
            _Count,
            _says(
                "1",
                "steps of an emulated device that its busy host could not end in time, since "
                "the node started",
            ),
        ]
        | None
    ) = None
    memory_used_bytes: (
        Annotated[
            _Count,
            _says(
                "B",
                "memory that the model takes; with the available memory it is the room for "
                "the model",
            ),
        ]
        | None
    ) = None
    is_charging: Annotated[bool, _says("1", "whether the device is on mains power")] | None = None
    core_wait_ratio: (
        Annotated[
            _Share,
            _says(
                "1",
                "share of the time of its computations in which the device waited for a core "
                "that others used",
            ),
        ]
        | None
    ) = None
    stage_rows: (
        Annotated[_ByReplica, _says("1", "replica id to the mean rows of these decode steps")]
        | None
    ) = None
    prefill_token_seconds: (
        Annotated[
            _ByReplica, _says("s", "replica id to its stage's time here for each token of a prompt")
        ]
        | None
    ) = None
    kv_chunks_sent: (
        Annotated[_Count, _says("1", "KV chunks sent to other devices since the node started")]
        | None
    ) = None
    kv_chunks_received: (
        Annotated[
            _Count,
            _says(
                "1",
                "KV chunks that came from other devices since the node started; summed over a fog "
                "at rest as many as were sent, unless the broker dropped some",
            ),
        ]
        | None
    ) = None


FIELDS: Final[Mapping[str, Any]] = {field.name: field.type for field in fields(Telemetry)}
"""Name of a field to its type, ranges included."""


class Reading(NamedTuple):
    """What could be read.

    Attributes:
        telemetry: The valid fields.
        refused: Names of the others; ``"*"`` when it was no JSON object at all.
    """

    telemetry: Telemetry
    refused: tuple[str, ...] = ()


def complaint(refused: Sequence[str]) -> str:
    """Return what a log says of the names in `Reading.refused`."""
    return (
        "refused, for it is no JSON object" if "*" in refused else f"refused {', '.join(refused)}"
    )


_MAX_FAULTS: Final = 10_000


class Faults:
    """Which fields of which source were refused before, so that a log names each once."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()

    def news(self, source: str, refused: Sequence[str]) -> tuple[str, ...]:
        """Return those of the names in `Reading.refused` that are new for a source.

        After ten thousand nothing is: names of sources come from strangers.
        """
        new = tuple(name for name in refused if (source, name) not in self._known)
        if len(self._known) + len(new) > _MAX_FAULTS:
            return ()
        self._known.update((source, name) for name in new)
        return new


def parse_telemetry(payload: bytes | str) -> Reading:
    """Read a JSON object, field by field; unknown fields are ignored.

    Three layouts are understood: the fields themselves (a flat object, as Node-RED sends
    ``msg.payload``), that object under ``payload``, and a metric of Telegraf's JSON
    serializer, with the fields under ``fields`` beside ``name``, ``tags`` and ``timestamp``.
    """
    try:
        values = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Reading(Telemetry(), ("*",))
    if not isinstance(values, dict):
        return Reading(Telemetry(), ("*",))
    for wrapper in ("fields", "payload"):
        inner = values.get(wrapper)
        if isinstance(inner, dict):
            values = inner
            break
    return valid_telemetry(values)


def valid_telemetry(values: Mapping[str, Any]) -> Reading:
    """Return the valid fields of ``values`` and the names of those refused."""
    kept: dict[str, Any] = {}
    refused: list[str] = []
    for name, kind in FIELDS.items():
        value = values.get(name)
        if value is None:
            continue
        try:
            kept[name] = _converted(value, kind)
        except msgspec.ValidationError:
            refused.append(name)
    return Reading(Telemetry(**kept), tuple(refused))


def _converted(value: Any, kind: Any) -> Any:
    """Return the value as its field has it, or raise `msgspec.ValidationError`."""
    # A whole number may come as 3.0, as Telegraf writes what it has computed.
    is_whole = isinstance(value, float) and value.is_integer()
    numbers = value.values() if isinstance(value, dict) else (value,)
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise msgspec.ValidationError("not a finite number")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        if not is_whole:
            raise
        return msgspec.convert(int(value), kind)


def merged(older: Telemetry, newer: Telemetry) -> Telemetry:
    """Return ``newer``, with fields of ``older`` where it says nothing."""
    said = {name: value for name in FIELDS if (value := getattr(newer, name)) is not None}
    return msgspec.structs.replace(older, **said)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a flat telemetry object, with units as ``x-unit``."""
    (found,), components = msgspec.json.schema_components([Telemetry])
    del found
    described = dict(components["Telemetry"])
    described["description"] = (
        "Telemetry of a device of an E2LLM fog. Every field is optional, numbers are finite and "
        "in the unit x-unit; fields that are not named here are ignored."
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "E2LLM device telemetry",
        **{key: value for key, value in described.items() if key != "title"},
    }
