"""The paper's seven devices, model and network from `calibration.toml`. Pure but for the file.

The file gives every number with its source; see its head for what was fitted to what. Here
numbers become the same values that measured profiles give, so that everything downstream is
one cost model.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from broker.control import DecodeTime, LayerTimes, Link, PrefillTime
from planner.model import DeviceSpec, ModelSpec
from planner.sourced import Sourced, SourcedFile, SourcedTable

CALIBRATION_FILE: Final = Path(__file__).with_name("calibration.toml")

MAX_SLOTS: Final = 16
"""Most requests that the paper's planner decodes at once in one replica."""

_BLOCK: Final = "block"
_CONTEXT: Final = 1
"""The paper's profile has no context length: its decode times are the same at any."""
_LONG_PROMPT: Final = 1 << 20
_GIGABYTE: Final = 10**9


SOURCES: Final = ("paper", "derived", "assumed", "fitted")
"""What the file may say about where a number is from; its head explains the words."""


class CalibrationError(ValueError):
    """The file is not a calibration; the message says where."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The paper's fog in the planner's values.

    Attributes:
        devices: dev1 to dev7. A device's ``link`` is its way to the switch; ``peers`` hold
            the fitted way of a decode step's hidden states into the next stage.
        names: Device id to what it is.
        model: Without KV cache: the published offload counts are the same for both
            workloads, so the paper's planner does not count it.
        kv_bytes_per_token: KV cache of one position in all blocks.
        numbers: Every number of the file with its source, in order.
    """

    devices: tuple[DeviceSpec, ...]
    names: Mapping[str, str]
    model: ModelSpec
    kv_bytes_per_token: int
    numbers: tuple[Sourced, ...]

    @property
    def link(self) -> Link:
        """Every device's way to the switch."""
        return self.devices[0].link

    def kv_seconds(self, prompt_tokens: int) -> float:
        """Return how long a prompt's KV cache takes from device to device, link to itself."""
        return prompt_tokens * self.kv_bytes_per_token / self.link.bytes_per_second


@cache
def load_calibration(path: Path = CALIBRATION_FILE) -> Calibration:
    """Read a calibration.

    Raises:
        UnsourcedNumberError: A number is missing, has no source, or is not a number.
        CalibrationError: It is no TOML, or devices have no ids of their own.
        OSError: The file cannot be read.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise CalibrationError(f"{path.name}: {error}") from error
    return parse_calibration(document, path.name)


def parse_calibration(document: Mapping[str, Any], name: str) -> Calibration:
    """Return a calibration from the tables of a file; raises as `load_calibration` does."""
    reader = SourcedFile(name, SOURCES)
    model = reader.table("model", document.get("model", {}), texts=("name",))
    network = reader.table("network", document.get("network", {}))
    tables: list[Mapping[str, Any]] = document.get("devices", [])
    ids = [device for table in tables for device in table.get("ids", [])]
    if not ids or len(set(ids)) != len(ids):
        raise CalibrationError(f"{name}: devices need ids, each once; found {ids}")
    spec, kv_bytes = _model(model, str(document["model"].get("name", "")))
    row_bytes = spec.activation_bytes
    hop = Link(
        latency_seconds=network("hop_milliseconds") / 1e3,
        bytes_per_second=row_bytes / (network("hop_row_milliseconds") / 1e3),
    )
    link = Link(latency_seconds=0.0, bytes_per_second=network("megabits_per_second") * 1e6 / 8)
    devices = []
    for table in tables:
        numbers = reader.table("/".join(table["ids"]), table, texts=("ids", "name"))
        for device in table["ids"]:
            peers = {peer: hop for peer in ids if peer != device}
            devices.append(_device(device, numbers, spec, link, peers))
    return Calibration(
        devices=tuple(sorted(devices, key=lambda device: device.id)),
        names={device: str(table.get("name", "")) for table in tables for device in table["ids"]},
        model=spec,
        kv_bytes_per_token=kv_bytes,
        numbers=tuple(reader.found),
    )


def _model(numbers: SourcedTable, name: str) -> tuple[ModelSpec, int]:
    num_blocks = int(numbers("num_blocks"))
    ffn = round(numbers("ffn_gigabytes") * _GIGABYTE)
    block = ffn + round(numbers("attention_gigabytes") * _GIGABYTE)
    kv_numbers = 2 * num_blocks * int(numbers("kv_heads")) * int(numbers("head_dim"))
    activation = int(numbers("hidden_size")) * int(numbers("activation_bytes_per_number"))
    spec = ModelSpec(
        name=name,
        revision="paper",
        weights="as calibrated",
        kv_format="float16",
        block_kinds=(_BLOCK,) * num_blocks,
        block_bytes=(block,) * num_blocks,
        kv_bytes=(0,) * num_blocks,
        embedding_bytes=0,
        head_bytes=round(numbers("ends_gigabytes") * _GIGABYTE),
        activation_bytes=activation,
        context_limit=131072,
        ffn_bytes=(ffn,) * num_blocks,
    )
    return spec, kv_numbers * int(numbers("kv_bytes_per_number"))


def _device(
    device: str, numbers: SourcedTable, model: ModelSpec, link: Link, peers: Mapping[str, Link]
) -> DeviceSpec:
    token = numbers("prefill_milliseconds_per_token") / model.num_layers
    block, row = numbers("block_milliseconds"), numbers("block_row_milliseconds")
    host_bytes = round(numbers("host_gigabytes") * _GIGABYTE)
    offloaded = {}
    if host_bytes:
        offloaded[_BLOCK] = _times(
            token + numbers("ffn_prefill_milliseconds_per_token"),
            block + numbers("ffn_milliseconds"),
            row + numbers("ffn_row_milliseconds"),
        )
    return DeviceSpec(
        id=device,
        memory_bytes=round(numbers("usable_gigabytes") * _GIGABYTE),
        blocks={_BLOCK: _times(token, block, row)},
        embedding=_times(0.0, 0.0, 0.0),
        # A prompt passes the head once, at its last position: nothing beside its blocks.
        head=_times(0.0, numbers("ends_milliseconds"), 0.0),
        link=link,
        host_memory_bytes=host_bytes,
        offloaded=offloaded,
        peers=peers,
    )


def _times(prefill_ms: float, step_ms: float, row_ms: float) -> LayerTimes:
    """Return lines as tables: two points each, so that nothing between them differs."""
    return LayerTimes(
        prefill=[PrefillTime(n, n * prefill_ms / 1e3) for n in (1, _LONG_PROMPT)],
        decode=[
            DecodeTime(rows, _CONTEXT, (step_ms + rows * row_ms) / 1e3) for rows in (1, MAX_SLOTS)
        ],
    )
