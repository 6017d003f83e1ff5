"""What this gateway believes of the room in each replica. Pure.

Its own requests it knows exactly. What other gateways hold follows from the last answer of
a master, and is forgotten after some seconds, since nobody reports when it ends.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from broker.events import Granted, GrantState
from broker.placement import WAITING_ROWS
from broker.plan import Replica, Role
from broker.room import NOTHING, Usage, prefill_slots_of, slots_of
from broker.work import ReserveKind
from gateway.attempt import Request
from gateway.lifecycle import Phase
from gateway.measures import Measures
from gateway.routing import Load, predicted_prefill_rate


class Occupancy:
    """Turns requests, answers of masters and measurements into `Load`s.

    Args:
        fresh_seconds: How long an answer tells what other gateways hold.
    """

    def __init__(self, measures: Measures, fresh_seconds: float = 5.0) -> None:
        self._measures = measures
        self._fresh_seconds = fresh_seconds
        self._foreign: dict[str, tuple[float, Usage]] = {}
        self._suspect_until: dict[str, float] = {}

    def suspect(self, replica_id: str, until: float) -> None:
        """Avoid a replica for a while: it lost or refused a request."""
        self._suspect_until[replica_id] = until

    def learn(
        self,
        event: Granted,
        replica: Replica,
        request: Request,
        requests: Iterable[Request],
        now: float,
    ) -> None:
        """Take in how much room a master says is left after its answer to ``request``."""
        if event.state is GrantState.REFUSED:
            return
        own = NOTHING
        for other in requests:
            # A queued question holds nothing yet.
            if other is not request or event.state is GrantState.GRANTED:
                own += other.usage(replica)
        _, foreign = self._foreign.get(replica.id, (0.0, NOTHING))
        prefills, decodes, complete = foreign.prefills, foreign.decodes, foreign.complete
        if event.kind is ReserveKind.PREFILL:
            prefills = max(prefill_slots_of(replica) - event.free_slots - own.prefills, 0)
        elif event.kind is ReserveKind.BOTH:
            decodes = max(slots_of(replica) - event.free_slots - own.decodes, 0)
            complete = min(complete, decodes)
        else:
            taken = slots_of(replica) + WAITING_ROWS - event.free_slots
            if replica.role is Role.BOTH:
                decodes = max(taken - own.decodes, 0)
                complete = min(complete, decodes)
            else:
                complete = max(taken - own.complete, 0)
                decodes = max(decodes, complete)
        tokens = max(replica.kv_tokens - event.free_tokens - own.tokens, 0)
        usage = Usage(prefills, decodes, tokens, complete, whole_tokens=tokens)
        self._foreign[replica.id] = (now, usage)

    def loads(
        self, replicas: Sequence[Replica], requests: Iterable[Request], now: float
    ) -> list[Load]:
        """Return the load of each of ``replicas``, in their order."""
        own: dict[str, Usage] = defaultdict(Usage)
        backlog: dict[str, float] = defaultdict(float)
        generated: dict[str, list[int]] = defaultdict(list)
        queued: Counter[str] = Counter()
        for request in requests:
            if request.binding is None:
                if request.joined is not None:
                    prefill, decode = request.joined
                    backlog[prefill] += request.known_tokens
                    queued[decode] += 1
                continue
            if request.num_steps:
                generated[request.binding.decode.id].append(request.num_steps)
            for replica in request.binding.replicas:
                own[replica.id] += request.usage(replica)
            if request.phase in {Phase.RESERVING, Phase.PREFILL}:
                backlog[request.binding.prefill.id] += self._unfinished_tokens(request, now)
        return [
            Load(
                replica,
                own[replica.id],
                self._foreign_now(replica.id, now),
                tuple(sorted(generated[replica.id], reverse=True)),
                queued[replica.id],
                backlog[replica.id],
                self._measures.prefill_overhead_seconds(replica.id),
                self._measures.prefill_factor(replica.id),
                self._measures.step_factor(replica.id),
                is_suspect=self._suspect_until.get(replica.id, now) > now,
            )
            for replica in replicas
        ]

    def _unfinished_tokens(self, request: Request, now: float) -> float:
        assert request.binding is not None
        tokens = request.known_tokens - request.cached_tokens
        if request.phase is Phase.RESERVING:
            return tokens
        replica = request.binding.prefill
        rate = predicted_prefill_rate(replica) / self._measures.prefill_factor(replica.id)
        return max(tokens - rate * (now - request.opened_at), 0.0)

    def _foreign_now(self, replica_id: str, now: float) -> Usage:
        learned_at, usage = self._foreign.get(replica_id, (now, NOTHING))
        return usage if now - learned_at <= self._fresh_seconds else NOTHING
