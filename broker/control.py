"""Control messages: what a person reads with ``mosquitto_sub``, JSON on the wire.

Every message validates itself when built, so one that exists is valid. Fields may be
added with a default, never renamed or reused: an older peer ignores what it does not
know. Units are SI and stand in the names. Nothing here does I/O.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct, field

PROTOCOL_VERSION = "1.0"
"""Major.minor of the contract; peers of another major version are left out of plans."""


class Control(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of all control messages."""


class Role(StrEnum):
    """What a replica is used for. It steers routing, never ability."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class DeviceState(StrEnum):
    """Life of a device as the bus sees it (the Homie convention's words)."""

    READY = "ready"
    SLEEPING = "sleeping"
    LOST = "lost"


class TensorInfo(Control, frozen=True, kw_only=True):
    """Where one tensor of a checkpoint lies.

    Attributes:
        file: Name of the safetensors file inside the model folder.
        offset: First byte in that file, counted from its start.
        num_bytes: Length in bytes.
        dtype: safetensors name, for example ``F32`` or ``BF16``.
        shape: Row-major shape.
        checksum: SHA-256 of the bytes, hexadecimal.
    """

    file: str
    offset: int
    num_bytes: int
    dtype: str
    shape: tuple[int, ...]
    checksum: str

    def __post_init__(self) -> None:
        if self.offset < 0 or self.num_bytes < 0 or min(self.shape, default=0) < 0:
            raise ValueError(f"{self.file}: offset, size and shape must not be negative")


class ModelManifest(Control, frozen=True, kw_only=True):
    """A model that the fog serves; retained under ``models/<slug>``.

    Attributes:
        name: Name that clients use in requests.
        revision: Hash over config and tensor checksums; equal revisions are equal models.
        config: ``config.json`` of the checkpoint, unchanged.
        tensors: Tensor name to its place.
        weights: Format in which nodes hold weights: ``float32`` or ``bfloat16``.
        kv_format: Format of KV cache entries and transfers.
        folder: The model folder where the gateway sees it; a node that can open it reads
            there, others use ``urls``.
        urls: File name to signed URLs, tried in order.
        expires_at: UTC seconds after which the URLs are refused; the gateway publishes
            fresh ones before.
    """

    name: str
    revision: str
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    weights: str = "float32"
    kv_format: str = "float32"
    folder: str | None = None
    urls: dict[str, list[str]] = field(default_factory=dict)
    expires_at: float | None = None


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


class Link(Control, frozen=True, kw_only=True):
    """A device's link to the broker: one-way latency and rate."""

    latency_seconds: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        if not (self.latency_seconds >= 0 and self.bytes_per_second > 0):
            raise ValueError("latency must be >= 0 and rate > 0")


class DeviceProfile(Control, frozen=True, kw_only=True):
    """What a device measured of itself for one model; retained.

    Attributes:
        session: Session of the node that measured.
        model_revision: Revision of the manifest that it measured for.
        weights: Weight format that it measured.
        threads: Threads used for torch.
        memory_bytes: Memory offered to the model, weights plus KV cache. A share
            ("60 %") is already turned into bytes of this model.
        blocks: Times per kind of block (``"full"``; later ``"sliding"``, ``"moe"``).
        embedding: Times of the embedding look-up.
        head: Times of final norm, head and sampling.
        chunk_tokens: Chunk grid that the prefill times were measured with.
        slowdown: Factor of an emulated device, 1.0 for a real one; already contained
            in the times.
        cpu_seconds_per_second: Thread CPU time over wall time while measuring; well
            under 1 means that something else used the cores.
    """

    session: int
    model_revision: str
    weights: str
    threads: int
    memory_bytes: int
    blocks: dict[str, LayerTimes]
    embedding: LayerTimes
    head: LayerTimes
    link: Link
    chunk_tokens: int
    slowdown: float = 1.0
    cpu_seconds_per_second: float = 1.0
    hardware: str = ""

    def __post_init__(self) -> None:
        if self.memory_bytes < 0:
            raise ValueError("memory_bytes must not be negative")
        if not self.blocks:
            raise ValueError("needs the times of at least one kind of block")
        if not self.slowdown > 0:
            raise ValueError("slowdown must be greater than 0")


class Telemetry(Control, frozen=True, kw_only=True):
    """Plain JSON from a node or any IoT agent; every field is optional.

    Attributes:
        speed_ratio: Speed now relative to the profile; 0.25 means four times slower.
        stage_seconds: Replica id to the mean seconds of its stage's decode step here.
        queue_length: Work items waiting on the device.
    """

    cpu_load_ratio: float | None = None
    memory_available_bytes: int | None = None
    temperature_celsius: float | None = None
    battery_ratio: float | None = None
    speed_ratio: float | None = None
    stage_seconds: dict[str, float] | None = None
    queue_length: int | None = None
    link_latency_seconds: float | None = None
    link_bytes_per_second: float | None = None
    tokens_per_second: float | None = None
    kv_used_tokens: int | None = None
    dropped_messages: int | None = None
    late_steps: int | None = None


class LayerRange(Struct, frozen=True, array_like=True, order=True):
    """Half-open range of layers ``[start, end)``."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"not a layer range: [{self.start}, {self.end})")

    def __len__(self) -> int:
        return self.end - self.start

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, int) and self.start <= layer < self.end

    def overlap(self, other: LayerRange) -> LayerRange | None:
        """Return the layers that both ranges hold, or None."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return LayerRange(start, end) if start < end else None


class StageAssignment(Control, frozen=True, kw_only=True):
    """One stage that a device holds.

    Attributes:
        stage: Index in the replica, 0-based.
        kv_tokens: KV positions that this stage must be able to hold.
    """

    replica: str
    stage: int
    layers: LayerRange
    embedding: bool
    head: bool
    kv_tokens: int


class Assignment(Control, frozen=True, kw_only=True):
    """Planner to node; retained. The node loads ``hold`` and ``prepare``, frees the rest."""

    version: int
    model: str
    revision: str
    weights: str = "float32"
    kv_format: str = "float32"
    chunk_tokens: int = 128
    hold: list[StageAssignment] = field(default_factory=list)
    prepare: list[StageAssignment] = field(default_factory=list)


class LoadState(StrEnum):
    """How far a node is with its assignment."""

    MEASURING = "measuring"
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"


class Loaded(Control, frozen=True, kw_only=True):
    """What a node has in memory and ready, or what failed and why; retained.

    Attributes:
        version: Version of the assignment that this answers.
        stages: ``"<replica>/<stage>"`` of every stage that is ready.
        tensors: Names of the tensors in memory.
        error: Which tensor or URL failed, and why; None unless ``state`` is failed.
    """

    session: int
    version: int
    state: LoadState
    revision: str = ""
    stages: list[str] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    loaded_bytes: int = 0
    total_bytes: int = 0
    error: str | None = None


class BatchSeconds(Struct, frozen=True, array_like=True):
    """Predicted seconds of a stage's decode step at the planned context."""

    batch: int
    seconds: float


class Stage(Control, frozen=True, kw_only=True):
    """One stage of a replica as the plan names it."""

    device: str
    layers: LayerRange
    embedding: bool
    head: bool
    predicted_seconds: float
    decode_seconds: list[BatchSeconds] = field(default_factory=list)
    hop_seconds: float = 0.0


class Rates(Control, frozen=True, kw_only=True):
    """Predicted or measured rates of a replica or of the whole fog."""

    prefill_tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0
    requests_per_second: float | None = None
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None


class Replica(Control, frozen=True, kw_only=True):
    """A complete chain of stages.

    Attributes:
        id: Names the stages (see `broker.placement.replica_id`); lasts as long as they do,
            across plan versions and role changes.
        slots: Requests decoded at once, the largest number that keeps ``min_tps``.
        prefill_slots: Prompts in work or waiting for hand-over at once.
        kv_tokens: KV positions that every stage of the replica can hold.
    """

    id: str
    role: Role
    slots: int
    prefill_slots: int
    kv_tokens: int
    stages: list[Stage]
    predicted: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        expected = 0
        for stage in self.stages:
            if stage.layers.start != expected:
                raise ValueError(f"replica {self.id}: layers must be contiguous from 0")
            expected = stage.layers.end
        if not self.stages:
            raise ValueError(f"replica {self.id} has no stage")
        if not self.stages[0].embedding or not self.stages[-1].head:
            raise ValueError(f"replica {self.id}: embedding at the first stage, head at the last")
        if len({stage.device for stage in self.stages}) != len(self.stages):
            raise ValueError(f"replica {self.id} names a device twice")

    @property
    def num_layers(self) -> int:
        """Layers of the whole model."""
        return self.stages[-1].layers.end


class IdleDevice(Control, frozen=True, kw_only=True):
    """A device that the plan leaves out, and why."""

    device: str
    reason: str


class SingleDevice(Control, frozen=True, kw_only=True):
    """Prediction for the best device that could hold the whole model alone."""

    device: str
    predicted: Rates


class PlanState(StrEnum):
    """A plan is prepared while the old one serves, then active."""

    PREPARING = "preparing"
    ACTIVE = "active"


class Plan(Control, frozen=True, kw_only=True):
    """Planner to all; retained.

    Attributes:
        version: Grows by one with every plan; lower ones are ignored.
        chunk_tokens: Prefill chunk grid, from position 0.
        context_tokens: Longest prompt plus answer that a request may have.
        reasons: Device to the reason for its place.
        optimality: ``"certified optimal"`` or the gap to the bound, in words.
        trigger: What changed, so that this plan was made.
    """

    version: int
    state: PlanState
    model: str
    revision: str
    weights: str
    kv_format: str
    chunk_tokens: int
    context_tokens: int
    replicas: list[Replica]
    idle: list[IdleDevice] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    predicted: Rates = field(default_factory=Rates)
    best_single_device: SingleDevice | None = None
    optimality: str = ""
    trigger: str = ""
    created_at: float = 0.0

    def replica(self, replica_id: str) -> Replica | None:
        """Return the replica of that id, or None."""
        return next((r for r in self.replicas if r.id == replica_id), None)


class PlannerStatus(Control, frozen=True, kw_only=True):
    """Planner to all; retained, last will ``lost``. Says why there is no plan yet.

    Attributes:
        session: Grows with every start.
        problem: What keeps a plan from being made or becoming active, with the remedy;
            None when all is well.
        redis: Whether Redis answers.
    """

    state: DeviceState
    session: int
    problem: str | None = None
    redis: bool = True


class GatewayStatus(Control, frozen=True, kw_only=True):
    """Retained, and the last will of a gateway.

    Attributes:
        addresses: Base URLs under which the gateway answers.
    """

    state: DeviceState
    session: int
    addresses: list[str] = field(default_factory=list)
    software: str = ""
