"""Control messages: what a person reads with ``mosquitto_sub``, JSON on the wire.

Every message validates itself when built, so one that exists is valid. Fields may be
added with a default, never renamed or reused: an older peer ignores what it does not
know. Units are SI and stand in the names. Nothing here does I/O.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct, field

from broker.quiet import parse_quiet_hours

PROTOCOL_VERSION = "1.3"
"""Major.minor of the contract; peers of another major version are left out of plans.

The minor version grows when messages get fields. Neighbours must work together: a recording of
the version before is played to this one (`tests/pipeline/recordings`).
"""

GRAMMAR_VERSION = "1.2"
"""The first version whose last stages choose tokens by a grammar; an earlier one ignores it."""


class Control(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of all control messages."""


class DeviceState(StrEnum):
    """Life of a device as the bus sees it (the Homie convention's words)."""

    READY = "ready"
    SLEEPING = "sleeping"
    LOST = "lost"


class TensorInfo(Control, frozen=True, kw_only=True, omit_defaults=True):
    """Where one tensor of a checkpoint lies.

    Attributes:
        file: Name of the file inside the model folder, safetensors or GGUF.
        offset: First byte in that file, counted from its start.
        num_bytes: Length in bytes.
        dtype: As safetensors or GGUF name it, for example ``F32`` or ``Q4_K``.
        shape: Row-major shape.
        checksum: SHA-256 of the bytes, hexadecimal.
        paired_heads: Heads in which the rows that are rotated together lie beside each other, as
            llama.cpp has them; 0: each in its half of the head, as transformers has them.
        added: What the file has added to every element.
    """

    file: str
    offset: int
    num_bytes: int
    dtype: str
    shape: tuple[int, ...]
    checksum: str
    paired_heads: int = 0
    added: float = 0.0

    def __post_init__(self) -> None:
        if self.offset < 0 or self.num_bytes < 0 or min(self.shape, default=0) < 0:
            raise ValueError(f"{self.file}: offset, size and shape must not be negative")


class HubPlace(Control, frozen=True, kw_only=True):
    """Where on a hub a checkpoint came from.

    Its files are at ``{endpoint}/{repository}/resolve/{revision}/{folder}/{file}``.

    Attributes:
        revision: A commit, so that the files never change.
        folder: In the repository; empty: the files are in no folder.
    """

    endpoint: str
    repository: str
    revision: str
    folder: str = ""


class ModelManifest(Control, frozen=True, kw_only=True):
    """A model that the fog serves; retained under ``models/<slug>``.

    Attributes:
        name: Name that clients use in requests.
        revision: Hash over config and tensor checksums; equal revisions are equal models.
        config: ``config.json`` of the checkpoint, unchanged.
        tensors: Tensor name to its place.
        weights: Format in which nodes hold weights, of `broker.architecture.WEIGHT_FORMATS`.
        kv_format: Format of KV cache entries.
        kv_transfer: How they travel between replicas, of `broker.architecture.KV_TRANSFERS`.
        gateway: Id of the gateway that publishes it, and takes it back when it is removed.
        in_use: Whether the fog is to serve it; one that is not is measured all the same, so that
            it can be changed to at once.
        folder: The model folder, when nodes on the gateway's own machine may read there;
            others use ``urls``.
        urls: File name to signed URLs, tried in order.
        expires_at: UTC seconds after which the URLs are refused; the gateway publishes
            fresh ones before.
        tensor_key: Signs what nodes ask of each other, see `nodes.tensor_urls`; a new one comes
            with every fresh URL. Empty: nodes hand nothing on.
        hub: Where else the files are; None: nowhere.
        tokenizer: ``tokenizer.json``, read by last stages when a first request brings a
            grammar; None: there is none, as from a gateway of an earlier version.
    """

    name: str
    revision: str
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    weights: str = "float32"
    kv_format: str = "float32"
    kv_transfer: str = "exact"
    gateway: str = ""
    in_use: bool = True
    folder: str | None = None
    urls: dict[str, list[str]] = field(default_factory=dict)
    expires_at: float | None = None
    tensor_key: str = ""
    hub: HubPlace | None = None
    tokenizer: TensorInfo | None = None

    @property
    def files(self) -> list[str]:
        """The files that nodes read from, each once, sorted."""
        tokenizer = () if self.tokenizer is None else (self.tokenizer,)
        return sorted({info.file for info in (*self.tensors.values(), *tokenizer)})


class DeviceStatus(Control, frozen=True, kw_only=True):
    """Retained and also the last will of a device.

    Attributes:
        session: Grows with every start of the node; a fence against late wills.
        pid: Process id, meaningful on a one-machine fog only.
    """

    state: DeviceState
    session: int
    protocol: str = PROTOCOL_VERSION
    software: str = ""
    pid: int | None = None

    def speaks(self, version: str) -> bool:
        """Whether the device speaks ``version`` of the contract, or a later minor one."""
        return _numbers(self.protocol)[:1] == _numbers(version)[:1] and (
            _numbers(self.protocol) >= _numbers(version)
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the parts of a version; none where it is not of numbers."""
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(map(str.isdecimal, parts)) else ()


class PrefillTime(Struct, frozen=True, array_like=True):
    """Seconds to take a whole prompt of ``num_tokens`` through, in chunks on the grid."""

    num_tokens: int
    seconds: float


class DecodeTime(Struct, frozen=True, array_like=True):
    """Seconds of one decode step of ``batch`` rows, each with ``context`` positions of KV."""

    batch: int
    context: int
    seconds: float


class LayerTimes(Control, frozen=True, kw_only=True):
    """Measured times of one block, or of the embedding or the head."""

    prefill: list[PrefillTime]
    decode: list[DecodeTime]

    def __post_init__(self) -> None:
        if not self.prefill or not self.decode:
            raise ValueError("needs at least one prefill and one decode time")
        seconds = [t.seconds for t in self.prefill] + [t.seconds for t in self.decode]
        if any(not s >= 0 for s in seconds):
            raise ValueError("times must be non-negative numbers of seconds")


USUAL_LINK_BYTES_PER_SECOND = 12.5e6
"""Of a link of which nothing is known: wired, 100 Mbit/s."""


class Link(Control, frozen=True, kw_only=True):
    """A device's link to the broker: one-way latency and rate."""

    latency_seconds: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        if not (self.latency_seconds >= 0 and self.bytes_per_second > 0):
            raise ValueError("latency must be >= 0 and rate > 0")


class OwnerRules(Control, frozen=True, kw_only=True):
    """What the owner of a device allows.

    Attributes:
        share: Part of the device that the node takes at most, of its cores' time and of its
            memory; the node keeps to it by itself, and its times contain it.
        quiet_hours: Local time in which the device is left alone, as `broker.quiet` reads it.
        utc_offset_seconds: Local time minus UTC.
        phases: ``prefill`` and ``decode`` as far as the device may take part in them.
        text: Whether the device may hold the embedding or the head, and so see tokens.
        layers: The only layers that the device may hold, half-open; None: any.
    """

    share: float = 1.0
    quiet_hours: str | None = None
    utc_offset_seconds: int = 0
    phases: list[str] = field(default_factory=lambda: ["prefill", "decode"])
    text: bool = True
    layers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError("share must be over 0 and at most 1")
        if self.quiet_hours is not None:
            parse_quiet_hours(self.quiet_hours)
        if abs(self.utc_offset_seconds) >= 86_400:
            raise ValueError("utc_offset_seconds must be less than a day")
        if not self.phases or not set(self.phases) <= {"prefill", "decode"}:
            raise ValueError("phases must be prefill, decode or both")
        if self.layers is not None and not 0 <= self.layers[0] < self.layers[1]:
            raise ValueError("layers must be a first and a last, the last one not included")


class Placement(StrEnum):
    """Whether a device may be given stages."""

    OPEN = "open"
    CORDONED = "cordoned"
    """It keeps the stages that it has and gets no new ones."""
    DRAINING = "draining"
    """It gives its stages up as soon as others have them."""
    REMOVED = "removed"
    """It does not come back: what is kept of it is cleared."""


class DeviceControl(Control, frozen=True, kw_only=True):
    """What a person asked of a device at a gateway; retained.

    Attributes:
        rules: Instead of those in the device's profile; None: those.
        at: UTC seconds when it was asked.
    """

    placement: Placement = Placement.OPEN
    rules: OwnerRules | None = None
    at: float = 0.0


class ModelTimes(Control, frozen=True, kw_only=True):
    """What a device measured of itself for one model.

    Attributes:
        model_revision: Revision of the manifest that it measured for.
        weights: Weight format that it measured.
        memory_bytes: Memory offered to the model, weights plus KV cache. A share
            ("60 %") is already turned into bytes of this model.
        blocks: Times per kind of block (``"full"``; later ``"sliding"``, ``"moe"``).
        embedding: Times of the embedding look-up.
        head: Times of final norm, head and sampling.
        chunk_tokens: Chunk grid that the prefill times were measured with.
        cpu_seconds_per_second: Thread CPU time over wall time while measuring; well
            under 1 means that something else used the cores.
        arithmetic: What decides the bits of its results for these weights, in words:
            processor, kernels, width of codes. Devices with an equal one compute equally.
    """

    model_revision: str
    weights: str
    memory_bytes: int
    blocks: dict[str, LayerTimes]
    embedding: LayerTimes
    head: LayerTimes
    chunk_tokens: int
    cpu_seconds_per_second: float = 1.0
    arithmetic: str = ""

    def __post_init__(self) -> None:
        if self.memory_bytes < 0:
            raise ValueError("memory_bytes must not be negative")
        if not self.blocks:
            raise ValueError("needs the times of at least one kind of block")


class DeviceProfile(ModelTimes, frozen=True, kw_only=True):
    """What a device measured of itself; retained. Its own times are those for its newest model.

    Attributes:
        session: Session of the node that measured.
        threads: Threads used for torch.
        slowdown: Factor of an emulated device, 1.0 for a real one; already contained
            in the times.
        idle_watts: Power while the device waits for work, as its owner says; None: unknown.
        busy_watts: Power while it computes; known when ``idle_watts`` is.
        owner: What its owner allows.
        others: Times for the other models that gateways publish.
    """

    session: int
    threads: int
    link: Link
    slowdown: float = 1.0
    hardware: str = ""
    idle_watts: float | None = None
    busy_watts: float | None = None
    owner: OwnerRules = OwnerRules()
    others: list[ModelTimes] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.slowdown > 0:
            raise ValueError("slowdown must be greater than 0")

    def times_for(self, revision: str, weights: str) -> ModelTimes | None:
        """Return what was measured for a model; None: nothing yet."""
        return next(
            (
                times
                for times in (self, *self.others)
                if (times.model_revision, times.weights) == (revision, weights)
            ),
            None,
        )


class TensorOffer(Control, frozen=True, kw_only=True):
    """Bytes of tensors that a device hands on to others over HTTP; retained.

    Attributes:
        url: Base of the addresses, see `nodes.tensor_urls`.
        tensors: Revision of a model to half-open ranges of positions in its tensors' names,
            sorted.
    """

    session: int
    url: str
    tensors: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


class MeasuredLengths(Control, frozen=True, kw_only=True):
    """How long the prompts and answers of recent requests were.

    Attributes:
        num_requests: Over which the means are taken.
        prompt_tokens: Mean.
        answer_tokens: Mean.
    """

    num_requests: int
    prompt_tokens: float
    answer_tokens: float

    def __post_init__(self) -> None:
        if self.num_requests < 1 or not (self.prompt_tokens > 0 and self.answer_tokens > 0):
            raise ValueError("lengths need at least one request and are greater than 0")


class GatewayStatus(Control, frozen=True, kw_only=True):
    """Retained, and the last will of a gateway.

    Attributes:
        addresses: Base URLs under which the gateway answers.
        lengths: Of its recent requests; None until there are enough.
        hop_overhead_seconds: What a hop of a decode ring takes beside the links of its two
            devices, by its recent requests; None until there are enough.
        finishing: Revisions of models that are not in use, of which it has unfinished requests.
        asked: Revision of a model to about how many requests for it came lately; empty with one
            model.
    """

    state: DeviceState
    session: int
    addresses: list[str] = field(default_factory=list)
    software: str = ""
    lengths: MeasuredLengths | None = None
    hop_overhead_seconds: float | None = None
    finishing: list[str] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
