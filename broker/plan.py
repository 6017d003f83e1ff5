"""Messages about plans: who holds which layers, and how far everyone is with it. JSON.

As in `broker.control`: a message that exists is valid, and fields are only ever added.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field

from broker.control import Control, DeviceState
from broker.identity import OfModel, identity


class Role(StrEnum):
    """What a replica is used for. It steers routing, never ability."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


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
        embedding_device: Of a head, who holds the embedding of the same replica: where both are
            one tensor, that device reads it and hands it on. None: nobody else, or not said.
    """

    replica: str
    stage: int
    layers: LayerRange
    embedding: bool
    head: bool
    kv_tokens: int
    embedding_device: str | None = None


class ModelStages(Control, frozen=True, kw_only=True):
    """Stages of one model on one device, and how that model is held."""

    model: str
    revision: str
    weights: str = "float32"
    kv_format: str = "float32"
    kv_transfer: str = "exact"
    chunk_tokens: int = 128
    hold: list[StageAssignment] = field(default_factory=list)
    prepare: list[StageAssignment] = field(default_factory=list)

    @property
    def stages(self) -> list[StageAssignment]:
        """All that is to be in memory."""
        return [*self.hold, *self.prepare]


class Assignment(ModelStages, frozen=True, kw_only=True):
    """Planner to node; retained. The node loads ``hold`` and ``prepare``, frees the rest.

    Attributes:
        frees_first: Memory does not hold what is freed beside what is loaded: the node loads
            when the last request of what it gives up has ended.
        others: Stages of other models, while the fog changes from one to another, or serves
            several.
    """

    version: int
    frees_first: bool = False
    others: list[ModelStages] = field(default_factory=list)

    @property
    def parts(self) -> list[ModelStages]:
        """The stages of each model."""
        return [self, *self.others]


class LoadState(StrEnum):
    """How far a node is with its assignment."""

    MEASURING = "measuring"
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"


class ReadFrom(Control, frozen=True, kw_only=True):
    """What one source has given for an assignment.

    Attributes:
        source: ``folder``, ``cache``, ``neighbour <device>``, ``gateway <host>`` or
            ``hub <host>``.
        num_bytes: That came from there, damaged ones included.
        problems: How often it broke off, refused or gave damaged bytes.
        last_problem: The latest, in words.
    """

    source: str
    num_bytes: int
    problems: int = 0
    last_problem: str | None = None


class Loaded(Control, frozen=True, kw_only=True):
    """What a node has in memory and ready, or what failed and why; retained.

    Attributes:
        version: Version of the assignment that this answers.
        stages: ``"<replica>/<stage>"`` of every stage that is ready.
        tensors: Names of the tensors in memory, of whichever model.
        error: Which tensor or URL failed, and why; None unless ``state`` is failed.
        sources: Where the bytes of the assignment came from.
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
    sources: list[ReadFrom] = field(default_factory=list)


class BatchSeconds(Struct, frozen=True, array_like=True):
    """Predicted seconds of a stage's decode step at the planned context."""

    batch: int
    seconds: float


class Stage(Control, frozen=True, kw_only=True):
    """One stage of a replica as the plan names it.

    Attributes:
        predicted_seconds: Of a prompt, or of a decode step with one row, by the role.
        decode_seconds: Of decode steps by their rows.
        hop_seconds: One row's way from the stage before; to the first from the last.
        hop_row_seconds: What every further row of a decode group adds to it.
    """

    device: str
    layers: LayerRange
    embedding: bool
    head: bool
    predicted_seconds: float
    decode_seconds: list[BatchSeconds] = field(default_factory=list)
    hop_seconds: float = 0.0
    hop_row_seconds: float = 0.0


class Rates(Control, frozen=True, kw_only=True):
    """Predicted or measured rates of a replica or of the whole fog.

    Attributes:
        good_requests_per_second: Those of a fog that meet its TTFT and TPOT targets; None
            without targets.
        kv_seconds: Mean time in which a prompt's KV cache moves to the replica that decodes;
            None where none moves.
        kv_exposed_seconds: What is left of it when prefill ends.
        joules_per_token: Of an answer, at full load; None where a device's power is unknown.
    """

    prefill_tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0
    requests_per_second: float | None = None
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    good_requests_per_second: float | None = None
    kv_seconds: float | None = None
    kv_exposed_seconds: float | None = None
    joules_per_token: float | None = None


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

    def embedding_device(self, index: int) -> str | None:
        """Return who holds the embedding, if stage ``index`` has the head and not that."""
        stage = self.stages[index]
        return self.stages[0].device if stage.head and not stage.embedding else None


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
        speeds: Speed of each device, relative to its own profile, that the plan was made
            with; 1 for those that are not named.
        prompt_tokens: Mean prompt that was planned for; 0: not said.
        answer_tokens: Mean answer, likewise.
        kv_transfer: How KV travels between replicas.
        hop_overhead_seconds: What every hop is taken to need beside the links of its two
            devices; part of the stages' ``hop_seconds``.
        others: Plans for other models, of this version and state, beside this one.
        is_leaving: The fog gives this model up: requests that were accepted end, new ones do
            not begin.
        share: Of all requests, that the model's devices were chosen for; 0: it has all devices.
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
    speeds: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    kv_transfer: str = "exact"
    hop_overhead_seconds: float = 0.0
    others: list[Plan] = field(default_factory=list)
    is_leaving: bool = False
    share: float = 0.0

    @property
    def parts(self) -> list[Plan]:
        """The plans for each model; the first is this one."""
        return [self, *self.others]

    @property
    def all_replicas(self) -> list[Replica]:
        """The replicas of all models."""
        return [replica for part in self.parts for replica in part.replicas]

    def part_for(self, target: OfModel) -> Plan | None:
        """Return the plan for one model; None: it has none."""
        wanted = identity(target)
        return next((part for part in self.parts if identity(part) == wanted), None)

    def replica(self, replica_id: str) -> Replica | None:
        """Return the replica of that id, whichever model it is of, or None."""
        return next((r for r in self.all_replicas if r.id == replica_id), None)


class PlannerStatus(Control, frozen=True, kw_only=True):
    """Planner to all; retained, last will ``lost``. Says why there is no plan yet.

    Attributes:
        session: Grows with every start.
        problem: What keeps a plan from being made or becoming active, with the remedy;
            None when all is well.
        redis: Whether Redis answers.
        refused_fields: Fields of telemetry that could not be read since the planner started,
            over MQTT and in Redis; brought up to date when the status is repeated.
    """

    state: DeviceState
    session: int
    problem: str | None = None
    redis: bool = True
    refused_fields: int = 0


class Considered(Control, frozen=True, kw_only=True):
    """A plan that the planner thought of.

    Attributes:
        name: ``running``: the stages that serve, with the predictions of now; ``best``: the
            best that was found for the devices of now.
        requests_per_second: Predicted.
        objective_seconds: Per request, with what loading costs; what decides.
    """

    name: str
    num_replicas: int
    num_devices: int
    requests_per_second: float
    objective_seconds: float
    optimality: str = ""


class PlanDecision(Control, frozen=True, kw_only=True):
    """What the planner decided, and why.

    Attributes:
        at: UTC seconds.
        trigger: What had changed; empty for what became of an earlier decision.
        outcome: ``adopted``: a plan with other replicas or roles; ``kept``: the same replicas
            with the predictions of now; ``none``: no plan.
        reason: Why.
        version: Of the plan; None without one.
        considered: What was compared.
    """

    at: float
    trigger: str
    outcome: str
    reason: str
    version: int | None = None
    considered: list[Considered] = field(default_factory=list)


class PlanHistory(Control, frozen=True, kw_only=True):
    """The planner's latest decisions, oldest first; retained."""

    decisions: list[PlanDecision] = field(default_factory=list)
