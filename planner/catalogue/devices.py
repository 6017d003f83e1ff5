"""Devices by data sheet, and the tables that measuring them would give. Pure but for the file.

A roofline: a step takes as long as reading its weights and KV cache, or as computing, whichever
is longer, and a little for every block. What comes out are the same tables that a node measures
of itself, so that everything downstream is one cost model; what a device measures is better.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from broker.control import DecodeTime, LayerTimes, Link, PrefillTime
from planner.catalogue.models import CatalogueModel, WeightFormat
from planner.model import DeviceSpec
from planner.sourced import Sourced, SourcedFile, SourcedTable

_FILE: Final = Path(__file__).with_name("devices.toml")
SOURCES: Final = ("datasheet", "measured", "estimate")

# Where tables have their points; between them times are lines, as in measured profiles.
_PROMPTS: Final = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_BATCHES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_CONTEXTS: Final = (64, 256, 1024, 4096, 16384)
_FULL_ROWS: Final = 128
# What the hosts of graphics cards reach of their memory's and processors' peaks.
_HOST_MEMORY_SHARE: Final = 0.7
_HOST_COMPUTE_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueDevice:
    """A device by data sheet.

    Attributes:
        flops_per_second: That a language model reaches in a chunk of a prompt.
        row_flops_per_second: That it reaches in a step of a single row; in between it grows
            with the rows, to the full rate at a chunk of 128.
        bytes_per_second: That it reads from memory in decode.
        memory_bytes: Offered to weights and KV cache.
        step_seconds: Paid by every block in every step.
        host_memory_bytes: Host memory for feed-forward weights; 0 without, and on unified
            memory.
        host_bytes_per_second: That the host's processor reads from it.
        host_flops_per_second: That the host's processor reaches; what lies in its memory is
            computed there, as llama.cpp does with experts.
        link: To the broker.
        idle_watts: Power of the whole device while a model is loaded and nothing computes.
        busy_watts: Power of the whole device while a language model runs.
    """

    name: str
    flops_per_second: float
    row_flops_per_second: float
    bytes_per_second: float
    memory_bytes: int
    link: Link
    step_seconds: float = 0.0
    host_memory_bytes: int = 0
    host_bytes_per_second: float = 0.0
    host_flops_per_second: float = 0.0
    idle_watts: float | None = None
    busy_watts: float | None = None

    def __post_init__(self) -> None:
        if not (self.bytes_per_second > 0 and self.row_flops_per_second > 0):
            raise ValueError(f"device {self.name}: compute and memory rates must be > 0")
        if not self.row_flops_per_second <= self.flops_per_second:
            raise ValueError(f"device {self.name}: a row computes no faster than a chunk")
        if self.memory_bytes < 0 or self.host_memory_bytes < 0 or self.step_seconds < 0:
            raise ValueError(f"device {self.name}: memory and step time must not be negative")
        if self.host_memory_bytes and not (
            self.host_bytes_per_second > 0 and self.host_flops_per_second > 0
        ):
            raise ValueError(f"device {self.name}: host memory needs its rate and host compute")

    def without_host_memory(self) -> CatalogueDevice:
        """Return the device as our nodes use it: they keep no weights in host memory."""
        return replace(self, host_memory_bytes=0)

    def flops_with(self, rows: int) -> float:
        """Return the compute rate of a step: narrow matrices leave most units idle."""
        share = min((rows - 1) / (_FULL_ROWS - 1), 1.0)
        return self.row_flops_per_second + share * (
            self.flops_per_second - self.row_flops_per_second
        )

    def spec(
        self,
        device_id: str,
        model: CatalogueModel,
        weights: WeightFormat,
        kv_format: str = "float16",
        chunk_tokens: int = 128,
        link: Link | None = None,
        slowdown: float = 1.0,
    ) -> DeviceSpec:
        """Return the device as if it had measured itself with ``model``.

        Args:
            device_id: In the fog.
            model: Whose blocks are timed.
            weights: Format of the weights.
            kv_format: Format of the KV cache.
            chunk_tokens: Grid on which prompts are cut; each chunk reads the weights anew.
            link: Another way to the broker than the catalogue's, such as a poor Wi-Fi.
            slowdown: Factor on all times, for a device that does other work as well.
        """
        work = _Work(self, model, weights, model.kv_bytes(kv_format), chunk_tokens)
        kinds = sorted(set(model.kinds))
        return DeviceSpec(
            id=device_id,
            memory_bytes=self.memory_bytes,
            blocks={kind: work.block(kind, on_host=False) for kind in kinds},
            embedding=work.embedding(),
            head=work.head(),
            link=link or self.link,
            speed=1 / slowdown,
            host_memory_bytes=self.host_memory_bytes,
            offloaded={kind: work.block(kind, on_host=True) for kind in kinds}
            if self.host_memory_bytes
            else {},
            idle_watts=self.idle_watts,
            busy_watts=self.busy_watts,
        )


@dataclass(frozen=True, slots=True)
class _Work:
    """The times of one model on one device."""

    device: CatalogueDevice
    model: CatalogueModel
    weights: WeightFormat
    kv_bytes: int
    chunk_tokens: int

    def block(self, kind: str, on_host: bool) -> LayerTimes:
        """Return a block's times, its feed-forward part on the device or on the host."""
        return LayerTimes(
            prefill=[PrefillTime(n, self._prompt(kind, n, on_host)) for n in _PROMPTS],
            decode=[
                # Every row has a context of its own, whose KV cache is read for it alone.
                DecodeTime(rows, context, self._step(kind, rows, context, rows, on_host))
                for rows in _BATCHES
                for context in _CONTEXTS
            ],
        )

    def _prompt(self, kind: str, num_tokens: int, on_host: bool) -> float:
        seconds = 0.0
        for start in range(0, num_tokens, self.chunk_tokens):
            rows = min(self.chunk_tokens, num_tokens - start)
            # The rows of a chunk share one KV cache.
            seconds += self._step(kind, rows, start + (rows + 1) / 2, 1, on_host)
        return seconds

    def _step(self, kind: str, rows: int, context: float, caches: int, on_host: bool) -> float:
        """Return one step: ``rows`` see ``context`` positions in ``caches`` KV caches."""
        device, model = self.device, self.model
        seen = model.seen_positions(kind, context)
        # Scores and their sum over values: two products per head, position and row.
        flops = rows * (
            2 * model.attention_parameters(kind) + 4 * model.num_heads * model.head_dim * seen
        )
        read = model.attention_bytes(kind, self.weights) + caches * seen * self.kv_bytes
        attention = max(read / device.bytes_per_second, flops / device.flops_with(rows))
        flops = rows * 2 * model.active_ffn_parameters(kind)
        read = model.touched_experts(kind, rows) * model.expert_bytes(kind, self.weights)
        if on_host:
            ffn = max(read / device.host_bytes_per_second, flops / device.host_flops_per_second)
        else:
            ffn = max(read / device.bytes_per_second, flops / device.flops_with(rows))
        return attention + ffn + device.step_seconds

    def embedding(self) -> LayerTimes:
        """Return the look-up: one row of the matrix for every token."""
        row = self.model.matrix_bytes(self.weights) / self.model.vocab_size
        second = row / self.device.bytes_per_second
        return LayerTimes(
            prefill=[PrefillTime(n, n * second) for n in (1, _PROMPTS[-1])],
            decode=[DecodeTime(rows, 1, rows * second) for rows in (1, _BATCHES[-1])],
        )

    def head(self) -> LayerTimes:
        """Return the head's times; a prompt passes it at its last position only."""
        times = [(rows, self._head(rows)) for rows in _BATCHES]
        return LayerTimes(
            prefill=[PrefillTime(1, times[0][1])],
            decode=[DecodeTime(rows, 1, seconds) for rows, seconds in times],
        )

    def _head(self, rows: int) -> float:
        device, model = self.device, self.model
        flops = 2 * rows * model.vocab_size * model.hidden_size
        read = model.matrix_bytes(self.weights)
        return device.step_seconds + max(
            read / device.bytes_per_second, flops / device.flops_with(rows)
        )


@dataclass(frozen=True, slots=True)
class DeviceCatalogue:
    """The devices by name, and where each of their numbers is from."""

    devices: dict[str, CatalogueDevice]
    numbers: tuple[Sourced, ...]


def device_of_rates(
    name: str, flops_per_second: float, bytes_per_second: float, memory_bytes: int
) -> CatalogueDevice:
    """Return a device of which little is known: what a model reaches, in prompts and decode.

    The rest is what the catalogue has for small computers: a row of its own computes at a
    third of the rate of a chunk, each block costs 60 microseconds, the link is gigabit Ethernet.
    """
    return CatalogueDevice(
        name=name,
        flops_per_second=flops_per_second,
        row_flops_per_second=flops_per_second / 3,
        bytes_per_second=bytes_per_second,
        memory_bytes=memory_bytes,
        step_seconds=60e-6,
        link=Link(latency_seconds=0.2e-3, bytes_per_second=940e6 / 8),
    )


@cache
def load_devices(path: Path = _FILE) -> DeviceCatalogue:
    """Read a catalogue.

    Raises:
        UnsourcedNumberError: A number is missing, has no source, or is not a number.
        OSError: The file cannot be read.
    """
    reader = SourcedFile(path.name, SOURCES)
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    devices = {
        name: replace(_device(reader.table(name, table, texts=("name",))), name=table["name"])
        for name, table in document.items()
    }
    return DeviceCatalogue(devices, tuple(reader.found))


def _device(number: SourcedTable) -> CatalogueDevice:
    return CatalogueDevice(
        name="",
        flops_per_second=number("compute_gflops") * number("compute_share") * 1e9,
        row_flops_per_second=number("compute_gflops") * number("row_compute_share") * 1e9,
        bytes_per_second=number("memory_gigabytes_per_second") * number("memory_share") * 1e9,
        memory_bytes=round(number("memory_gigabytes") * 1e9),
        step_seconds=number("step_microseconds") / 1e6,
        host_memory_bytes=round(number("host_memory_gigabytes", 0.0) * 1e9),
        host_bytes_per_second=number("host_gigabytes_per_second", 0.0) * _HOST_MEMORY_SHARE * 1e9,
        host_flops_per_second=number("host_compute_gflops", 0.0) * _HOST_COMPUTE_SHARE * 1e9,
        idle_watts=number("idle_watts") if "idle_watts" in number else None,
        busy_watts=number("busy_watts") if "busy_watts" in number else None,
        link=Link(
            latency_seconds=number("link_milliseconds", 0.2) / 1e3,
            bytes_per_second=number("link_megabits_per_second") * 1e6 / 8,
        ),
    )
