"""From the queue to a binding: asks masters for room, one request at a time. Pure.

Late binding: a request waits in the gateway's one queue, first come first served, until a
pair of replicas can take it, and is opened when both masters have granted room. By the
policy `jsq` it joins the queues of two replicas when it arrives, and waits for these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.events import Granted, GrantState
from broker.plan import Replica
from gateway.attempt import Address, Binding, Request, master_of
from gateway.ledger import Ledger
from gateway.lifecycle import Phase
from gateway.requests import GenerationFailedError, NotReadyError
from gateway.routing import (
    Load,
    Pair,
    Policy,
    can_grant,
    choose_pair,
    full_replicas,
    shortest_queues,
)

Begin = Callable[[Request, float], None]


class Admission:
    """Binds requests to replicas.

    Args:
        begin: Called with a request for which all room is granted.
    """

    def __init__(self, ledger: Ledger, begin: Begin) -> None:
        self._ledger = ledger
        self._begin = begin

    def pump(self, now: float) -> None:
        """Let the next request ask for room, if none asks at present."""
        ledger = self._ledger
        joins = ledger.settings.policy is Policy.JSQ
        if joins:
            self._join_queues(now)
        reserving = ledger.reserving
        if reserving is not None:
            if joins or not self._should_rebind(reserving, now):
                return
            ledger.requeue(reserving, "room was found elsewhere", now, counts=False)
            reserving.not_before = now
        if not ledger.queue or not ledger.complete:
            return
        loads = ledger.loads(ledger.answering(now), now)
        turn = self._first_with_room(loads, now) if joins else self._oldest(loads, now)
        if turn is not None:
            request, pair = turn
            alone = pair.prefill.own.prefills == 0
            self._bind(request, pair.prefill.replica, pair.decode.replica, now)
            request.prefill_was_alone = alone and not (pair.is_single and pair.decode.own.decodes)

    def _oldest(self, loads: Sequence[Load], now: float) -> tuple[Request, Pair] | None:
        """Late binding: the oldest request and its pair; None if it has to wait."""
        ledger = self._ledger
        for request in ledger.queue:
            if request.not_before > now:
                continue
            demand = request.demand(ledger.measures.answer_tokens)
            usable = ledger.usable(request, loads)
            known = ledger.prefixes.loads(usable, request, ledger.view)
            pair = choose_pair(known, demand, ledger.settings.policy)
            if pair is not None:
                return request, pair
            if usable and demand.total_tokens <= ledger.largest_complete:
                return None  # Its turn, but no room now: those behind it must not overtake.
        return None

    def _join_queues(self, now: float) -> None:
        """Give each request that has none its pair: it waits for these replicas alone."""
        ledger = self._ledger
        answering = ledger.answering(now)
        known = {replica.id for replica in answering}
        for request in ledger.queue:
            if request.joined is None or not known.issuperset(request.joined):
                request.joined = None
                loads = ledger.usable(request, ledger.loads(answering, now))
                demand = request.demand(ledger.measures.answer_tokens)
                pair = shortest_queues(loads, demand)
                if pair is not None:
                    request.joined = (pair.prefill.replica.id, pair.decode.replica.id)

    def _first_with_room(self, loads: Sequence[Load], now: float) -> tuple[Request, Pair] | None:
        """Return the first request whose pair has room; none overtakes at a replica."""
        by_id = {load.replica.id: load for load in loads}
        full: set[str] = set()
        for request in self._ledger.queue:
            if request.joined is None or request.not_before > now:
                continue
            pair = Pair(*(by_id[replica] for replica in request.joined))
            demand = request.demand(self._ledger.measures.answer_tokens)
            lacking = full_replicas(pair, demand, own_only=True)
            if not lacking and full.isdisjoint(request.joined):
                return request, pair
            full |= lacking
        return None

    def granted(self, sender: str, event: Granted, now: float) -> None:
        """A master answers `Reserve`."""
        ledger = self._ledger
        request = ledger.current(event.key)
        replica = None
        if request is not None and request.binding is not None:
            replica = request.binding.replica(event.replica)
        if request is None or replica is None:
            if event.state is not GrantState.REFUSED:
                ledger.stray(event.key, [Address(event.replica, 0, sender)], now)
            return
        if sender != master_of(replica).device:
            ledger.dropped["grant of a stranger"] += 1
            return
        if request.phase is not Phase.RESERVING:
            return  # Said twice; the request has been opened meanwhile.
        request.answered.add(replica.id)
        ledger.occupancy.learn(event, replica, request, ledger.requests.values(), now)
        if event.state is GrantState.REFUSED:
            # The node does not know the plan yet, or its queue took too long.
            ledger.suspect(replica, now)
            ledger.requeue(request, f"refused by {sender}: {event.reason}", now)
        elif event.state is GrantState.QUEUED:
            ledger.room_changed = True  # Perhaps there is room elsewhere.
        else:
            if not request.granted:
                request.granted_at = now
            request.take_grant(replica.id, event.kv_credit_bytes, event.held_tokens)
            if (asked := request.usable_prefix) is not None:
                ledger.prefixes.learn(replica.id, asked, event.held_tokens)
            assert request.binding is not None
            if len(request.granted) == len(request.binding.replicas):
                ledger.reserving = None
                ledger.room_changed = True
                self._begin(request, now)

    def tick(self, request: Request, now: float) -> None:
        """Run the timers of a request that waits or asks."""
        if request.phase is Phase.QUEUED:
            self._tick_queued(request, now)
        else:
            self._tick_reserving(request, now)

    def _tick_queued(self, request: Request, now: float) -> None:
        ledger = self._ledger
        if request.known_tokens + request.remaining_tokens <= ledger.largest_complete:
            request.stranded_at = None
        elif request.stranded_at is None:
            request.stranded_at = now
        elif now - request.stranded_at >= ledger.settings.queue_seconds:
            absent = ", ".join(ledger.view.absent_devices())
            reason = f"no answer from {absent}" if absent else "no plan is active"
            message = f"no complete replica for {ledger.settings.queue_seconds:g} s: {reason}"
            if request.generated:
                ledger.fail(request, GenerationFailedError(message), now)
            else:
                ledger.fail(request, NotReadyError(message), now)

    def _tick_reserving(self, request: Request, now: float) -> None:
        assert request.binding is not None
        ledger, settings = self._ledger, self._ledger.settings
        silent = [r for r in request.binding.replicas if r.id not in request.answered]
        gone = ledger.replaceable_device(silent, now)
        if request.granted and now - request.granted_at >= settings.grant_wait_seconds:
            # Another gateway may hold what we wait for and wait for what we hold.
            for replica in silent:
                ledger.suspect(replica, now)
            reason = "the other replica did not grant room in time"
            ledger.requeue(request, reason, now, counts=bool(silent))
        elif gone is not None:
            ledger.requeue(request, f"device {gone} is silent", now)
        elif silent and now - request.bound_at >= settings.answer_seconds:
            for replica in silent:
                ledger.suspect(replica, now)
            device = master_of(silent[0]).device
            ledger.requeue(request, f"no answer from {device}, master of {silent[0].id}", now)
        elif now >= request.repeat_at:
            request.repeat_later(now, settings.longest_repeat_seconds)
            self._reserve(request)

    def _bind(self, request: Request, prefill: Replica, decode: Replica, now: float) -> None:
        ledger = self._ledger
        ledger.queue.remove(request)
        ledger.reserving = request
        sessions = ledger.view.sessions((prefill, decode))
        request.bind(Binding(prefill, decode, sessions), now, ledger.settings.repeat_seconds)
        request.prefix = ledger.prefixes.bound(request, ledger.view, (prefill, decode))
        self._reserve(request)

    def _reserve(self, request: Request) -> None:
        assert request.binding is not None
        ledger = self._ledger
        for replica in request.binding.replicas:
            if replica.id not in request.granted:
                message = request.reserve(replica, ledger.gateway, ledger.settings.queue_seconds)
                ledger.send(master_of(replica), message)

    def _should_rebind(self, request: Request, now: float) -> bool:
        """Whether a request that asks should ask elsewhere, or let an older one go first."""
        assert request.binding is not None
        ledger = self._ledger
        if request.granted:
            return False
        if any(r.order < request.order and r.not_before <= now for r in ledger.queue):
            return True
        if len(request.answered) < len(request.binding.replicas):
            return False
        loads = ledger.usable(request, ledger.loads(ledger.complete, now, without=request))
        loads = list(ledger.prefixes.loads(loads, request, ledger.view))
        demand = request.demand(ledger.measures.answer_tokens)
        best = choose_pair(loads, demand, ledger.settings.policy)
        if best is None or not can_grant(best, demand):
            return False
        chosen = {best.prefill.replica.id, best.decode.replica.id}
        return chosen != {replica.id for replica in request.binding.replicas}
