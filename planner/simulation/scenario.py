"""What is simulated: replicas, requests, a network, routing and what goes wrong. Frozen values.

Units are seconds, tokens, bytes. Positions are tokens in a KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from broker.control import Link
from broker.plan import Role
from planner.simulation.routing import PAPER_JSQ, Routing

PrefillSeconds = Callable[[int, int], float]
"""(num_tokens, position) to seconds of a chunk in one stage; must be hashable."""
DecodeSeconds = Callable[[int, float], float]
"""(rows, mean context) to seconds of one group's step in one stage; must be hashable.

One whose attribute ``is_context_free`` is true is evaluated once per number of rows.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimStage:
    """One stage of a replica.

    Attributes:
        prefill_seconds: Planned time of a chunk.
        decode_seconds: Planned time of a group's step.
        layers: Half-open layer range, which decides where KV goes; None: an equal share.
        hop_seconds: Latency into this stage from the one before (round the ring into the
            first), whatever the size.
        hop_row_seconds: Time on the link for each position on top of that.
        prefill_factor: True over planned time: the error of the planner's model.
        decode_factor: As ``prefill_factor``.
    """

    device: str
    prefill_seconds: PrefillSeconds
    decode_seconds: DecodeSeconds
    layers: tuple[int, int] | None = None
    hop_seconds: float = 0.0
    hop_row_seconds: float = 0.0
    prefill_factor: float = 1.0
    decode_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("prefill_factor", "decode_factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"stage on {self.device}: {name} must be > 0, not {value}")
        if not (self.hop_seconds >= 0 and self.hop_row_seconds >= 0):
            raise ValueError(f"stage on {self.device}: hops must not be negative")
        if self.layers is not None and not 0 <= self.layers[0] < self.layers[1]:
            raise ValueError(f"stage on {self.device}: {self.layers} is not a layer range")


class GroupRule(StrEnum):
    """How a replica's b rows are cut into groups that go round its S stages."""

    BEST = "best"
    """`broker.grouping.best_grouping`, as our masters do."""
    MICRO_BATCHES = "micro-batches"
    """Groups of ceil(b / S) rows; a step takes its way round or its slowest stage's turns."""
    PAPER = "paper"
    """As micro-batches, and a step always takes S times the slowest stage or hop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimReplica:
    """A complete chain of stages.

    Attributes:
        slots: Most requests decoded at once; None: as many as memory holds.
        kv_tokens: Positions that every stage can hold; infinite by default.
        chunk_tokens: Grid of prefill chunks; None: a prompt is one chunk.
        prefill_slots: Prompts that late binding grants at once; None: stages + 1.
        planned_context: Mean context for which masters and routers know decode times.
    """

    id: str
    role: Role
    stages: tuple[SimStage, ...]
    slots: int | None
    kv_tokens: float = math.inf
    chunk_tokens: int | None = None
    prefill_slots: int | None = None
    groups: GroupRule = GroupRule.BEST
    planned_context: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"replica {self.id} has no stage")
        for name in ("slots", "chunk_tokens", "prefill_slots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"replica {self.id}: {name} must be at least 1, not {value}")
        if not self.kv_tokens > 0:
            raise ValueError(f"replica {self.id}: kv_tokens must be > 0, not {self.kv_tokens}")

    def with_factors(self, prefill: float = 1.0, decode: float = 1.0) -> SimReplica:
        """Return the replica with its stages' model errors multiplied by these."""
        return replace(
            self,
            stages=tuple(
                replace(
                    stage,
                    prefill_factor=stage.prefill_factor * prefill,
                    decode_factor=stage.decode_factor * decode,
                )
                for stage in self.stages
            ),
        )


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request. The first token of an answer comes from prefill, the others from decode."""

    arrival_seconds: float
    prompt_tokens: int
    answer_tokens: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arrival_seconds) and self.arrival_seconds >= 0):
            raise ValueError(f"a request arrives at {self.arrival_seconds}, not at a time >= 0")
        if self.prompt_tokens < 1 or self.answer_tokens < 1:
            raise ValueError("a request has at least one prompt token and one answer token")

    @property
    def total_tokens(self) -> int:
        """KV positions that it grows to."""
        return self.prompt_tokens + self.answer_tokens


class KvTransfer(StrEnum):
    """When a prompt's KV leaves for another replica."""

    SERIALIZED = "serialized"
    """All after prefill."""
    BY_CHUNK = "by-chunk"
    """Each stage after each chunk (ours); the last chunk of the last stage is left over."""
    BY_LAYER = "by-layer"
    """Each layer of each chunk (Splitwise); one layer of the last chunk is left over."""


class Sharing(StrEnum):
    """What flows do that meet on a link."""

    FAIR = "fair"
    """Max-min fair rates, as TCP connections roughly have."""
    FIFO = "fifo"
    """One after the other in each link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A star: every device has a full-duplex link to one broker or switch.

    Attributes:
        links: Device to its link; a device without one is unlimited.
        switch_bytes_per_second: What passes the middle at once.
        serialized_below_tokens: Shorter prompts are sent after prefill (512 in Splitwise).
        residue_seconds: Added to every transfer that overlaps prefill (5 to 8 ms in
            Splitwise), beside the KV that is left over.
    """

    links: Mapping[str, Link] = field(default_factory=dict)
    switch_bytes_per_second: float = math.inf
    sharing: Sharing = Sharing.FAIR
    transfer: KvTransfer = KvTransfer.BY_CHUNK
    serialized_below_tokens: int = 0
    residue_seconds: float = 0.0


class KvReservation(StrEnum):
    """What a request reserves where it decodes."""

    WHOLE = "whole"
    """Prompt and answer, as if the answer's length were known (Splitwise)."""
    GROWING = "growing"
    """What it has; when memory is full the youngest goes back to the queue (ours)."""


@dataclass(frozen=True, slots=True)
class DeviceLoss:
    """A device stops; its replicas' requests go back to the queue when that is noticed."""

    at_seconds: float
    device: str
    notice_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DeviceSlowdown:
    """From now on a device takes ``factor`` times what its replica's tables say."""

    at_seconds: float
    device: str
    factor: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"slow-down of {self.device}: factor must be > 0, not {self.factor}")


@dataclass(frozen=True, slots=True)
class PlanChange:
    """A new plan is active: replicas of other ids drain, those of new ids join.

    A device that is in a draining and in a new replica works for both at full speed, which
    flatters the minute of the change.
    """

    at_seconds: float
    replicas: tuple[SimReplica, ...]


Fault = DeviceLoss | DeviceSlowdown | PlanChange


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run.

    Attributes:
        kv_bytes_per_token: KV cache of one position in all layers.
        num_layers: Of the model; the pieces of a by-layer transfer.
        expected_answer_tokens: What a router believes of every answer; None: their mean.
        stepwise: Take every decode step as an event of its own: slow, for comparison.
    """

    replicas: tuple[SimReplica, ...]
    requests: Sequence[SimRequest]
    routing: Routing = PAPER_JSQ
    network: Network = field(default_factory=Network)
    kv_bytes_per_token: float = 0.0
    num_layers: int = 1
    reservation: KvReservation = KvReservation.WHOLE
    faults: tuple[Fault, ...] = ()
    expected_answer_tokens: float | None = None
    stepwise: bool = False

    def __post_init__(self) -> None:
        if not self.replicas:
            raise ValueError("a scenario needs at least one replica")
        if not self.requests:
            raise ValueError("a scenario needs at least one request")
        ids = [replica.id for replica in self.replicas]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"replica ids must be different; more than once: {', '.join(twice)}")
        if self.num_layers < 1 or self.kv_bytes_per_token < 0:
            raise ValueError("num_layers must be >= 1 and kv_bytes_per_token >= 0")
