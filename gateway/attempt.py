"""One request on its way through the fog, and the messages that its stages get. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from broker.codec import encode_frame
from broker.events import TokenRow
from broker.placement import room_tokens, whole_tokens
from broker.plan import Replica
from broker.prefix import Prefix
from broker.room import Usage
from broker.topics import STAGE_WORK
from broker.transport import Publication
from broker.work import Data, Open, RequestKey, Reserve, ReserveKind
from gateway.course import MOST_TURNS, Turn
from gateway.lifecycle import Event, Phase, advance
from gateway.requests import Generation
from gateway.routing import Demand
from gateway.tracing.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Address:
    """How to reach a stage: its replica, its index, and the device that holds it."""

    replica: str
    stage: int
    device: str


@dataclass(frozen=True, slots=True)
class Postbox:
    """Turns messages to stages into publications under this gateway's name."""

    site: str
    gateway: str

    def to_stage(self, address: Address, message: Data) -> Publication:
        """Return the publication that brings ``message`` to a stage."""
        topic = STAGE_WORK.path(
            self.site,
            replica=address.replica,
            stage=address.stage,
            device=address.device,
            sender=self.gateway,
        )
        return Publication(topic, encode_frame(message), STAGE_WORK.qos)


def master_of(replica: Replica) -> Address:
    """Return where a replica's master is reached."""
    return Address(replica.id, 0, replica.stages[0].device)


@dataclass(frozen=True, slots=True)
class Binding:
    """The replicas of one attempt, and the sessions that their devices had then.

    The replicas are kept whole: an attempt runs on when they have left the plan.
    """

    prefill: Replica
    decode: Replica
    sessions: Mapping[str, int]

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas without repetition, decode last."""
        if self.prefill.id == self.decode.id:
            return (self.decode,)
        return (self.prefill, self.decode)

    def kind(self, replica: Replica) -> ReserveKind:
        """Return what room is needed in ``replica`` for."""
        if self.prefill.id == self.decode.id:
            return ReserveKind.BOTH
        return ReserveKind.DECODE if replica.id == self.decode.id else ReserveKind.PREFILL

    def stages(self) -> Iterator[Address]:
        """Yield all stages in the order in which `Open` must reach them.

        Reverse causal order: whoever sends data comes after whoever receives it, so that no
        stage gets data of a request that it does not know.
        """
        for replica in reversed(self.replicas):
            for index in reversed(range(len(replica.stages))):
                yield Address(replica.id, index, replica.stages[index].device)

    def replica(self, replica_id: str) -> Replica | None:
        """Return the bound replica of that id, or None."""
        return next((replica for replica in self.replicas if replica.id == replica_id), None)

    def device(self, replica_id: str, stage: int) -> str | None:
        """Return the device of a bound stage, None if it is not bound."""
        replica = self.replica(replica_id)
        if replica is None or not 0 <= stage < len(replica.stages):
            return None
        return replica.stages[stage].device


@dataclass(slots=True)
class Request:
    """All that the gateway knows of one request. Only the dispatcher writes it.

    Attributes:
        order: Place in the order of arrival; kept when it is queued again.
        turns: The phases that it entered, and when.
        attempt: Number of the present try, from 1; grows with every binding.
        generated: Tokens that were delivered.
        first_index: Index of the first token that the present attempt gives.
        early: Tokens that came before their turn.
        num_lost: Attempts that the fog lost or refused.
        num_unbound: Bindings in a row that came to no `Open`.
        not_before: No binding until then.
        joined: Prefill and decode replica for which it waits, by the policy `jsq`.
        stranded_at: Since when no complete replica could hold the queued request.
        chain: How its prompt begins, and for which KV (`broker.prefix.kv_identity`).
        prefix: What stages may keep of the attempt's prompt; None: nothing.
        skips_cache: It is computed from its beginning: what was granted was not there.
        granted: Replicas that have room for the attempt, and the KV credit of each.
        held: Replicas that have kept leading positions of the prompt, and how many.
        answered: Replicas whose master has answered at all.
        was_opened: Some attempt has sent `Open`, so that the request waits no more.
        opened: Stages that hold the attempt, as (replica id, index).
        bound_at, granted_at, opened_at: When the masters were asked, when the first of them
            granted, when all had and `Open` went out.
        repeat_at, repeat_after: When unanswered messages go out again, and the growing gap.
        progress_at: When the newest token was delivered, or `Open` went out, or the decode
            master said that the request waits for a row.
        resend_at: No token is asked for again before that.
        num_arrivals: Steps that brought tokens; one may bring several (speculation).
        sampled_at, sampled_tokens, sampled_arrivals: Where the present TPOT sample began.
        prefill_was_alone: No other request of ours was in the prefill replica, so the time
            to the first token measures it.
    """

    generation: Generation
    order: int
    submitted_at: float
    phase: Phase = Phase.QUEUED
    attempt: int = 0
    binding: Binding | None = None
    generated: list[int] = field(default_factory=list)
    first_index: int = 0
    early: dict[int, TokenRow] = field(default_factory=dict)
    num_lost: int = 0
    num_unbound: int = 0
    not_before: float = 0.0
    joined: tuple[str, str] | None = None
    stranded_at: float | None = None
    chain: tuple[str, Prefix] | None = None
    prefix: Prefix | None = None
    skips_cache: bool = False
    granted: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    was_opened: bool = False
    opened: set[tuple[str, int]] = field(default_factory=set)
    bound_at: float = 0.0
    granted_at: float = 0.0
    opened_at: float = 0.0
    repeat_at: float = 0.0
    repeat_after: float = 0.0
    progress_at: float = 0.0
    resend_at: float = 0.0
    num_arrivals: int = 0
    sampled_at: float = 0.0
    sampled_tokens: int = 0
    sampled_arrivals: int = 0
    prefill_was_alone: bool = False
    turns: deque[Turn] = field(default_factory=lambda: deque(maxlen=MOST_TURNS))

    def __post_init__(self) -> None:
        self.turns.append(Turn(self.phase, self.submitted_at))

    @property
    def id(self) -> str:
        """The request's id."""
        return self.generation.request_id

    @property
    def timeline(self) -> Timeline | None:
        """Of its trace; None: it is not traced."""
        return self.generation.timeline

    @property
    def key(self) -> RequestKey:
        """Id and present attempt."""
        return RequestKey(self.id, self.attempt)

    @property
    def known_tokens(self) -> int:
        """Prompt plus tokens generated so far."""
        return len(self.generation.prompt_ids) + len(self.generated)

    @property
    def remaining_tokens(self) -> int:
        """Tokens that may still come."""
        return self.generation.max_tokens - len(self.generated)

    @property
    def cached_tokens(self) -> int:
        """Leading positions that the attempt's prefill replica does not compute."""
        return 0 if self.binding is None else self.held.get(self.binding.prefill.id, 0)

    @property
    def num_steps(self) -> int:
        """Decode steps of the present attempt; its first token comes from prefill."""
        return max(len(self.generated) - self.first_index - 1, 0)

    def begin_sample(self, now: float) -> None:
        """Take TPOT over what comes from now on."""
        self.sampled_at = now
        self.sampled_tokens, self.sampled_arrivals = len(self.generated), self.num_arrivals

    def demand(self, answer_tokens: float) -> Demand:
        """Return what the request needs, given the mean length of answers."""
        expected = min(max(answer_tokens - len(self.generated), 1.0), self.remaining_tokens)
        return Demand(self.known_tokens, self.remaining_tokens, expected)

    def advance(self, event: Event, at: float) -> None:
        """Change the phase by the table, and remember since when it is another one."""
        before, self.phase = self.phase, advance(self.phase, event)
        if self.phase is not before:
            self.turns.append(Turn(self.phase, at))

    def bind(self, binding: Binding, now: float, repeat_after: float) -> None:
        """Begin a new attempt with two replicas."""
        self.advance(Event.BOUND, now)
        self.attempt += 1
        self.binding = binding
        self.joined = None
        self.first_index = len(self.generated)
        self.early.clear()
        self.granted.clear()
        self.held.clear()
        self.answered.clear()
        self.opened.clear()
        self.bound_at = now
        self.stranded_at = None
        self.repeat_at, self.repeat_after = now + repeat_after, 2 * repeat_after

    def repeat_later(self, now: float, longest_gap: float) -> None:
        """Set the next repeat, and a doubled gap for the one after it."""
        self.repeat_at = now + self.repeat_after
        self.repeat_after = min(2 * self.repeat_after, longest_gap)

    def usage(self, replica: Replica) -> Usage:
        """Return the room that the attempt holds in ``replica``, counted as its master does."""
        if self.binding is None or replica.id not in {r.id for r in self.binding.replicas}:
            return Usage()
        kind = self.binding.kind(replica)
        if kind is ReserveKind.PREFILL:
            if self.phase is Phase.DECODE:
                return Usage()
            room = room_tokens(kind, len(self.generation.prompt_ids) + self.first_index)
            return Usage(prefills=1, tokens=room, whole_tokens=room)
        is_complete = self.phase in {Phase.HANDOVER, Phase.DECODE}
        prefills = kind is ReserveKind.BOTH and not is_complete
        whole = whole_tokens(kind, self.known_tokens, self.remaining_tokens)
        room = room_tokens(kind, self.known_tokens)
        return Usage(int(prefills), 1, room, int(is_complete), whole)

    @property
    def usable_prefix(self) -> Prefix | None:
        """What of the prompt the attempt may find kept; None: nothing."""
        if self.prefix is None or self.skips_cache:
            return None
        # The last known position is computed in any case: the next token follows from it.
        return self.prefix.within(self.known_tokens - 1)

    def take_grant(self, replica_id: str, kv_credit_bytes: int, held_tokens: int) -> None:
        """A master has room for the attempt, and has kept so much of its prompt."""
        self.granted[replica_id] = kv_credit_bytes
        usable = self.usable_prefix
        self.held[replica_id] = 0 if usable is None else usable.within(held_tokens).num_tokens

    def reserve(self, replica: Replica, gateway: str, queue_seconds: float) -> Reserve:
        """Return the question for room in ``replica``."""
        assert self.binding is not None
        return Reserve(
            request_id=self.id,
            attempt=self.attempt,
            gateway=gateway,
            kind=self.binding.kind(replica),
            known_tokens=self.known_tokens,
            max_tokens=self.remaining_tokens,
            queue_seconds=queue_seconds,
            prefix=self.usable_prefix,
        )

    def open(self, address: Address, gateway: str) -> Open:
        """Return the message that begins the attempt at one stage.

        Only a first stage (which embeds) and a last one (which samples) need token ids.
        """
        assert self.binding is not None
        replica = next(r for r in self.binding.replicas if r.id == address.replica)
        needs_ids = address.stage in {0, len(replica.stages) - 1}
        generated = tuple(self.generated[: self.first_index])
        is_single = self.binding.prefill.id == self.binding.decode.id
        timeline = self.timeline
        return Open(
            request_id=self.id,
            attempt=self.attempt,
            gateway=gateway,
            prefill_replica=self.binding.prefill.id,
            decode_replica=self.binding.decode.id,
            num_prompt_tokens=len(self.generation.prompt_ids),
            num_generated_tokens=len(generated),
            max_tokens=self.generation.max_tokens,
            sampling=self.generation.sampling,
            prompt_ids=self.generation.prompt_ids if needs_ids else (),
            generated_ids=generated if needs_ids else (),
            kv_credit_bytes=self.granted.get(self.binding.decode.id, 0),
            prefix=self.prefix,
            cached_tokens=self.cached_tokens,
            held_tokens=0 if is_single else self.held.get(self.binding.decode.id, 0),
            traceparent=None if timeline is None else timeline.traceparent,
        )
