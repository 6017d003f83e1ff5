"""KV room and slots of one replica, granted by its master. Pure.

Masters own slots, gateways only hold grants. Room is counted in whole blocks, the same way
as every stage counts its slabs, so a grant here is room there.

A decode grant is for KV room. A slot counts from the moment a request is complete here, so
that none stays empty while a prompt is prefilled elsewhere (decision 0016).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from broker.events import Granted, GrantState
from broker.placement import kv_reserved_tokens, room_tokens, whole_tokens
from broker.plan import Replica
from broker.room import Usage, free_slots, has_room, has_slot
from broker.work import RequestKey, Reserve, ReserveKind
from nodes.outgoing import ToGateway


@dataclass(slots=True)
class Reservation:
    """Room that one attempt of one request holds.

    Attributes:
        tokens: KV positions that it holds.
        whole_tokens: KV positions that it may grow to.
        expires_at: None once the request was opened.
        is_complete: All its KV and its first token are here.
    """

    gateway: str
    kind: ReserveKind
    tokens: int
    whole_tokens: int
    expires_at: float | None
    is_complete: bool = False


Held = Callable[[Reserve], int]
"""Returns how many leading positions of a prompt the replica has kept."""


class Reservations:
    """Grants, queues or refuses; queued ones are granted in order as room becomes free."""

    def __init__(
        self,
        replica: Replica,
        grant_seconds: float,
        kv_credit_bytes: int,
        held: Held = lambda message: 0,
    ) -> None:
        self.replica = replica
        self._held_tokens = held
        self._grant_seconds = grant_seconds
        self._kv_credit_bytes = kv_credit_bytes
        self._held: dict[RequestKey, Reservation] = {}
        self._queue: deque[tuple[Reserve, float]] = deque()

    def __contains__(self, key: object) -> bool:
        return key in self._held

    @property
    def used_tokens(self) -> int:
        """KV positions that grants hold."""
        return sum(held.tokens for held in self._held.values())

    def kind(self, key: RequestKey) -> ReserveKind:
        """Return what the grant is for; KeyError without one."""
        return self._held[key].kind

    def gateway(self, key: RequestKey) -> str | None:
        """Return who holds or waits for a grant; None without one."""
        if key in self._held:
            return self._held[key].gateway
        return next((queued.gateway for queued, _ in self._queue if queued.key == key), None)

    def reserve(self, message: Reserve, now: float) -> list[ToGateway]:
        """Answer a `Reserve`; the same key gets the same answer again."""
        held = self._held.get(message.key)
        if held is not None:
            if held.expires_at is not None:
                held.expires_at = now + self._grant_seconds
            return [self._answer(message, GrantState.GRANTED)]
        largest = message.known_tokens + message.max_tokens
        if largest > self.replica.kv_tokens:
            reason = (
                f"needs {largest} KV positions, replica {self.replica.id} holds "
                f"{self.replica.kv_tokens}"
            )
            return [self._answer(message, GrantState.REFUSED, reason)]
        if any(queued.key == message.key for queued, _ in self._queue):
            return [self._answer(message, GrantState.QUEUED)]
        self._queue.append((message, now + message.queue_seconds))
        answers = self.grant_waiting(now)
        if message.key not in self._held:
            answers.append(self._answer(message, GrantState.QUEUED))
        return answers

    def open(self, key: RequestKey) -> bool:
        """The request came: its grant no longer expires. False if there is none."""
        held = self._held.get(key)
        if held is None:
            return False
        held.expires_at = None
        return True

    def complete(self, key: RequestKey) -> None:
        """All that a decode grant waited for is here: from now on it counts as a row."""
        self._held[key].is_complete = True

    def grow(self, key: RequestKey, num_tokens: int) -> bool:
        """Take room for ``num_tokens`` positions in all; False when there is none."""
        held = self._held[key]
        wanted = kv_reserved_tokens(num_tokens)
        if wanted - held.tokens > self.replica.kv_tokens - self.used_tokens:
            return False
        held.tokens = max(held.tokens, wanted)
        return True

    def youngest(self) -> RequestKey:
        """Return the decode grant that was given last."""
        return next(
            key for key in reversed(self._held) if self._held[key].kind is not ReserveKind.PREFILL
        )

    def release(self, key: RequestKey) -> None:
        """Give room back, or leave the queue; `grant_waiting` hands it on."""
        self._queue = deque(item for item in self._queue if item[0].key != key)
        self._held.pop(key, None)

    def expire(self, now: float) -> list[ToGateway]:
        """Void grants that were never opened and queued ones past their time."""
        for key in [k for k, r in self._held.items() if r.expires_at is not None]:
            if now >= (self._held[key].expires_at or now):
                del self._held[key]
        answers = [
            self._answer(message, GrantState.REFUSED, "waited too long for KV room")
            for message, until in self._queue
            if now >= until
        ]
        self._queue = deque(item for item in self._queue if now < item[1])
        return answers + self.grant_waiting(now)

    def keys_of(self, gateway: str) -> list[RequestKey]:
        """Return every grant and queued request of a gateway."""
        held = [key for key, r in self._held.items() if r.gateway == gateway]
        return held + [m.key for m, _ in self._queue if m.gateway == gateway]

    def grant_waiting(self, now: float) -> list[ToGateway]:
        """Grant queued requests in order while the first one fits."""
        answers = []
        while self._queue and self._has_room(self._queue[0][0]):
            message, _ = self._queue.popleft()
            self._held[message.key] = Reservation(
                message.gateway,
                message.kind,
                room_tokens(message.kind, message.known_tokens),
                whole_tokens(message.kind, message.known_tokens, message.max_tokens),
                now + self._grant_seconds,
            )
            answers.append(self._answer(message, GrantState.GRANTED))
        return answers

    def _has_room(self, message: Reserve) -> bool:
        replica, usage, kind = self.replica, self._usage, message.kind
        return has_slot(replica, usage, kind) and has_room(
            replica, usage, kind, message.known_tokens, message.max_tokens
        )

    @property
    def _num_incoming(self) -> int:
        held = self._held.values()
        return sum(h.kind is ReserveKind.DECODE and not h.is_complete for h in held)

    @property
    def _usage(self) -> Usage:
        held = self._held.values()
        return Usage(
            prefills=sum(not h.is_complete and h.kind is not ReserveKind.DECODE for h in held),
            decodes=sum(h.kind is not ReserveKind.PREFILL for h in held),
            tokens=self.used_tokens,
            complete=sum(h.is_complete for h in held),
            whole_tokens=sum(h.whole_tokens for h in held),
        )

    def _answer(self, message: Reserve, state: GrantState, reason: str = "") -> ToGateway:
        return ToGateway(
            message.gateway,
            Granted(
                request_id=message.request_id,
                attempt=message.attempt,
                replica=self.replica.id,
                kind=message.kind,
                state=state,
                reason=reason,
                expires_seconds=self._grant_seconds,
                # Of all whose KV is still to come: it comes over one link.
                kv_credit_bytes=self._kv_credit_bytes // max(self._num_incoming, 1),
                free_tokens=max(self.replica.kv_tokens - self.used_tokens, 0),
                free_slots=max(free_slots(self.replica, self._usage, message.kind), 0),
                held_tokens=self._held_tokens(message) if state is GrantState.GRANTED else 0,
            ),
        )
