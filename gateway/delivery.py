"""From `Open` to the last token: takes each token once, in order, from the right stage. Pure.

Tokens may be lost, late, repeated or out of order. They are accepted by (present attempt,
next index) only, so an answer never has a gap or a token of an attempt that is over.
"""

from __future__ import annotations

from typing import Final

from broker.events import LossKind, Lost, Opened, TokenRow, Waiting
from broker.plan import Replica
from broker.room import slots_of
from broker.work import Resend
from gateway.attempt import Address, Request, master_of
from gateway.ledger import Ledger
from gateway.lifecycle import RUNNING, Event, Phase
from gateway.requests import GeneratedToken, GenerationFailedError
from gateway.routing import predicted_step_seconds

MAX_EARLY_TOKENS: Final = 256
"""Tokens kept before their turn; later ones are asked for again."""
SAMPLE_TOKENS: Final = 32
"""TPOT is sampled once per this many tokens, and at the end of the answer."""


class Delivery:
    """Runs attempts for which all room is granted."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def begin(self, request: Request, now: float) -> None:
        """Send `Open` to every stage."""
        request.advance(Event.GRANTED, now)
        if not request.was_opened:
            request.was_opened = True
            self._ledger.measures.totals.queue.add(now - request.submitted_at)
        if request.timeline is not None:
            assert request.binding is not None
            replicas = request.binding.prefill, request.binding.decode
            request.timeline.opened(request.attempt, *replicas, request.cached_tokens, now)
        request.opened_at = request.progress_at = request.resend_at = now
        request.repeat_after = self._ledger.settings.repeat_seconds
        request.repeat_later(now, self._ledger.settings.longest_repeat_seconds)
        self._send_open(request)

    def opened(self, sender: str, event: Opened, now: float) -> None:
        """A stage holds the request."""
        request = self._ledger.current(event.key)
        if request is None or request.binding is None:
            self._ledger.stray(event.key, self._ledger.masters_over(sender), now)
        elif request.binding.device(event.replica, event.stage) == sender:
            request.opened.add((event.replica, event.stage))

    def waiting(self, sender: str, event: Waiting, now: float) -> None:
        """The decode master has everything, and no row is free: silence is no loss."""
        request = self._ledger.current(event.key)
        if request is None or request.binding is None or request.phase not in RUNNING:
            self._ledger.stray(event.key, self._ledger.masters_over(sender), now)
        elif sender != master_of(request.binding.decode).device:
            self._ledger.dropped["waiting said by a stranger"] += 1
        elif request.phase is Phase.PREFILL:
            # The first token was lost on its way; those who repeat it may have moved on.
            if now >= request.resend_at:
                self._ask_again(request, now)
        else:
            request.progress_at = now
            request.advance(Event.COMPLETE, now)
            self._ledger.room_changed = True  # A prefill slot may be free.

    def token(self, sender: str, row: TokenRow, now: float) -> None:
        """A stage says that it sampled a token."""
        request = self._ledger.current(row.key)
        if request is None or request.binding is None or request.phase not in RUNNING:
            self._ledger.stray(row.key, self._ledger.masters_over(sender), now)
            return
        allowed = {request.binding.decode.stages[-1].device}
        if row.index == request.first_index:
            # Prefill samples it; the last decode stage may know it too and repeat it.
            allowed.add(request.binding.prefill.stages[-1].device)
        if sender not in allowed:
            self._ledger.dropped["token of a stranger"] += 1
            return
        if row.logprobs is None and request.generation.sampling.top_logprobs is not None:
            # The decode stage repeats a token that it did not choose; prefill will say more.
            self._ledger.dropped["token without log probabilities"] += 1
            return
        next_index = len(request.generated)
        if row.index > next_index:
            if row.index - next_index <= MAX_EARLY_TOKENS:
                request.early.setdefault(row.index, row)
            # The first token of an attempt is repeated by the prefill master.
            if request.phase is not Phase.PREFILL and now >= request.resend_at:
                self._ask_again(request, now)
            return
        if row.index == next_index:
            self._accept(request, row, now)
        while request.phase in RUNNING and len(request.generated) in request.early:
            self._accept(request, request.early.pop(len(request.generated)), now)

    def lost(self, sender: str, event: Lost, now: float) -> None:
        """A master gives an attempt up."""
        ledger = self._ledger
        request = ledger.current(event.key)
        if request is None or request.binding is None:
            return
        masters = {master_of(request.binding.decode).device: request.binding.decode}
        if request.phase is not Phase.DECODE:
            masters.setdefault(master_of(request.binding.prefill).device, request.binding.prefill)
        if sender not in masters:
            ledger.dropped["loss by a stranger"] += 1
        elif event.kind is LossKind.FAILED:
            message = f"the request failed on the nodes: {event.reason}"
            ledger.fail(request, GenerationFailedError(message), now)
        elif event.kind is LossKind.PREEMPTED:
            # Not a fault of the fog, as long as each attempt brings the answer forward.
            stuck = len(request.generated) == request.first_index
            ledger.requeue(request, event.reason, now, counts=stuck)
        elif event.kind is LossKind.UNCACHED:
            # Nothing is wrong with the replica, and nothing was computed in vain.
            request.skips_cache = True
            if request.prefix is not None:
                ledger.prefixes.learn(masters[sender].id, request.prefix, 0)
            ledger.measures.refused_prefix()
            ledger.requeue(request, event.reason, now, counts=False)
        else:
            ledger.suspect(masters[sender], now)
            ledger.requeue(request, event.reason, now)

    def tick(self, request: Request, now: float) -> None:
        """Run the timers of a request that stages hold."""
        assert request.binding is not None
        ledger, settings = self._ledger, self._ledger.settings
        quiet_seconds = now - request.progress_at
        too_long = quiet_seconds - settings.silence_seconds
        if too_long >= 0 and too_long >= self._allowance_seconds(request, now):
            for replica in request.binding.replicas:
                ledger.suspect(replica, now)
            ledger.requeue(request, f"no token for {quiet_seconds:.0f} s", now)
            return
        if quiet_seconds >= settings.quiet_seconds:
            decodes = request.phase is Phase.DECODE
            needed = (request.binding.decode,) if decodes else request.binding.replicas
            silent = ledger.replaceable_device(needed, now)
            if silent is not None:
                ledger.requeue(request, f"device {silent} is silent", now, whole=True)
                return
        if now >= request.resend_at and self._is_missing(request, quiet_seconds):
            self._ask_again(request, now)
        if request.phase is not Phase.DECODE and now >= request.repeat_at:
            request.repeat_later(now, settings.longest_repeat_seconds)
            self._send_open(request)

    # --- tokens ------------------------------------------------------------------------------

    def _accept(self, request: Request, row: TokenRow, now: float) -> None:
        ledger = self._ledger
        is_first = len(request.generated) == len(request.generation.generated)
        request.generated.append(row.token_id)
        # Tokens of one message are of one step.
        request.num_arrivals += now != request.progress_at
        reason = row.finish_reason or ("length" if request.remaining_tokens == 0 else None)
        cached = request.cached_tokens if is_first else 0
        token = GeneratedToken(row.index, row.token_id, reason, row.logprobs, cached)
        ledger.deliver(request, token)
        if request.timeline is not None:
            request.timeline.token(reason, now)
        self._measure(request, reason, now)
        request.progress_at = now
        if request.phase is not Phase.DECODE:
            ledger.room_changed = True  # A prefill slot may be free.
        if request.phase is Phase.HANDOVER:
            # A second token can only come from decode, so all KV has arrived there.
            request.advance(Event.COMPLETE, self._complete_at(request, now))
        if reason is None:
            request.advance(Event.TOKEN, now)
        else:
            ledger.end(request, Event.STOPPED, "finished", now)

    def _is_missing(self, request: Request, quiet_seconds: float) -> bool:
        """Whether a token was probably lost, rather than not sampled yet."""
        is_stalled = quiet_seconds >= self._ledger.settings.stall_seconds
        if request.phase is Phase.PREFILL:
            # While prefill runs, its master owns the timer; later tokens show that it ended.
            return is_stalled and bool(request.early)
        return is_stalled or bool(request.early)

    def _ask_again(self, request: Request, now: float) -> None:
        """Ask last stages for the next token and all after it."""
        assert request.binding is not None
        settings = self._ledger.settings
        gap = settings.repeat_seconds if request.early else settings.stall_seconds
        request.resend_at = now + gap
        message = Resend(
            request_id=request.id,
            attempt=request.attempt,
            gateway=self._ledger.gateway,
            index=len(request.generated),
        )
        for replica in request.binding.replicas:
            # Before the first token of an attempt, prefill is where it was sampled.
            if replica.id == request.binding.decode.id or request.phase is Phase.PREFILL:
                last = len(replica.stages) - 1
                self._ledger.send(Address(replica.id, last, replica.stages[last].device), message)

    def _send_open(self, request: Request) -> None:
        assert request.binding is not None
        for address in request.binding.stages():
            if (address.replica, address.stage) not in request.opened:
                self._ledger.send(address, request.open(address, self._ledger.gateway))

    def _complete_at(self, request: Request, now: float) -> float:
        """Return since when the decode replica probably had everything, at the second token.

        It says so only where no row is free; otherwise the token is one step later. Where one
        replica does both, nothing had to come.
        """
        assert request.binding is not None
        decode, prefilled_at = request.binding.decode, request.turns[-1].at
        if request.binding.prefill.id == decode.id:
            return prefilled_at
        rows = min(self._rows_in(decode) + 1, slots_of(decode))
        step = predicted_step_seconds(decode, rows)
        step *= self._ledger.measures.step_factor(decode.id)
        return max(prefilled_at, now - step)

    # --- times -------------------------------------------------------------------------------

    def _allowance_seconds(self, request: Request, now: float) -> float:
        """Return how much longer than usual the attempt may be quiet."""
        assert request.binding is not None
        patience = self._ledger.settings.patience
        loads = self._ledger.loads(request.binding.replicas, now, without=request)
        prefill, decode = loads[0], loads[-1]
        seconds = decode.step_seconds(decode.own.decodes + 1)
        if request.phase is not Phase.DECODE:
            tokens = prefill.prefill_backlog_tokens + request.known_tokens
            seconds += prefill.prefill_seconds(tokens)
        return patience * seconds

    def _measure(self, request: Request, finish_reason: str | None, now: float) -> None:
        assert request.binding is not None
        is_last = finish_reason is not None
        measures = self._ledger.measures
        measures.token(now)
        if len(request.generated) == 1:
            measures.first_token(now - request.submitted_at)
        if request.phase is Phase.PREFILL:
            measures.prompt(request.known_tokens - 1, request.cached_tokens)
        if request.phase is Phase.PREFILL and request.prefill_was_alone:
            measures.prefilled(
                request.binding.prefill,
                request.known_tokens - 1 - request.cached_tokens,
                now - request.opened_at,
                self._ledger.view.planned_prompt_tokens,
            )
        if len(request.generated) <= request.first_index + 2:
            # The way from prefill to the second token is not a decode step alone.
            request.begin_sample(now)
        num_tokens = len(request.generated) - request.sampled_tokens
        if num_tokens and (num_tokens >= SAMPLE_TOKENS or is_last):
            replica = request.binding.decode
            measures.decoded(
                replica,
                request.num_arrivals - request.sampled_arrivals,
                now - request.sampled_at,
                self._rows_in(replica),
                self._ledger.view.planned_hop_overhead,
                num_tokens=num_tokens,
            )
            request.begin_sample(now)
        if finish_reason is not None:
            measures.totals.ended(finish_reason, now - request.submitted_at)
            num_prompt_tokens = request.known_tokens - len(request.generated)
            measures.finished(num_prompt_tokens, len(request.generated), now)

    def _rows_in(self, replica: Replica) -> int:
        complete = sum(
            request.phase is Phase.DECODE
            and request.binding is not None
            and request.binding.decode.id == replica.id
            for request in self._ledger.requests.values()
        )
        return min(complete, slots_of(replica))
