"""One stage of one replica: messages in, messages out, by position. Knows no MQTT.

A stage compares the position of every message with the length of its KV for that request:
equal, it runs; smaller, it sends its stored result again; larger, it asks for a repeat. It
never merges, splits or waits for groups.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

from broker.codec import Buffer
from broker.events import Opened, Tokens
from broker.plan import Replica
from broker.work import (
    Data,
    FirstToken,
    Forward,
    HandedOver,
    KvChunk,
    KvComplete,
    KvCredit,
    Live,
    Open,
    PrefillProgress,
    Release,
    Repeat,
    RequestData,
    RequestKey,
    Resend,
    Reserve,
    RowFailed,
    Step,
    StepDone,
    TensorMeta,
)
from nodes.beginnings import held_tokens, open_kv
from nodes.compute import Clock, Pace
from nodes.conductor import Conductor
from nodes.context import Lookup, StageContext, StageSettings, UnexpectedMessageError, ids
from nodes.executor import StageExecutor
from nodes.grammars import GrammarMaker
from nodes.jobs import StageJobs
from nodes.outgoing import Outgoing
from nodes.requests import RequestTable, StageRequest, token_row
from nodes.speculation import Speculation, Tally
from nodes.streams import KvStreams


class StageCore:
    """A stage that a device holds.

    Args:
        lookup: Returns the replica of an id that any known plan names, or None.
        pace: Called after each computation, before its result leaves.
        grammars: Makes grammars, at a last stage; None: none can be made.
    """

    def __init__(
        self,
        replica: Replica,
        index: int,
        executor: StageExecutor,
        lookup: Lookup,
        settings: StageSettings,
        pace: Pace = lambda cost: None,
        grammars: GrammarMaker | None = None,
    ) -> None:
        self._context = StageContext(replica, index, executor, lookup, settings, grammars)
        self._requests = self._context.requests
        self._executor = executor
        self._timers = settings.timers
        self.conductor: Conductor | None = None
        self._dismissed_at = -math.inf
        if index == 0:
            self.conductor = Conductor(
                replica,
                settings.timers,
                executor.chunk_tokens,
                settings.kv_window_bytes,
                lookup,
                partial(held_tokens, executor),
                Speculation(settings.most_proposed),
                self._context.timing,
            )
        self._streams = KvStreams(self._context)
        self._jobs = StageJobs(self._context, self._streams, self.conductor, pace)

    # --- the shell's side --------------------------------------------------------------------

    @property
    def replica(self) -> Replica:
        """The replica that this is a stage of."""
        return self._context.replica

    @property
    def executor(self) -> StageExecutor:
        """The layers and their KV."""
        return self._executor

    @property
    def requests(self) -> RequestTable:
        """Open requests and the memory of ended ones."""
        return self._requests

    @property
    def dropped(self) -> Counter[str]:
        """Messages and rows that were dropped, by reason."""
        return self._context.dropped

    @property
    def is_idle(self) -> bool:
        """Whether no request is open here, so that the stage may be dropped."""
        return not self._requests and not (self.conductor and self.conductor.live)

    @property
    def speculated(self) -> Tally:
        """What came of proposed ids, at the master; nothing at other stages."""
        return self.conductor.speculation.tally if self.conductor is not None else Tally()

    @property
    def queue_length(self) -> int:
        """Work items that wait to be computed."""
        return self._jobs.num_waiting

    def update(self, replica: Replica) -> None:
        """Take over a new plan's role and slots for the same stages."""
        self._context.replica = replica
        if self.conductor is not None:
            self.conductor.update(replica)

    def drain(self) -> list[Outgoing]:
        """Return and forget what is to be sent."""
        out = list(self._context.out)
        self._context.out.clear()
        if self.conductor is not None:
            out += self.conductor.out
            self.conductor.out.clear()
        return out

    def has_work(self) -> bool:
        """Whether `run_next` would compute something."""
        return self._jobs.has_work()

    def run_next(self, now: Clock) -> None:
        """Run one job: a group, or, if one just ran or none waits, one prefill chunk."""
        self._jobs.run_next(now)

    def tick(self, now: float) -> None:
        """Run timers: repeats, KV streams, forgotten requests."""
        self._requests.forget_old(now)
        for request in self._requests:
            if now - request.named_at >= self._timers.forget:
                self.dropped["request not named by its master"] += 1
                self._end(request.open.key, now)
            else:
                self._streams.tick(request, now)
                if request.is_held_up and request.can_choose:
                    self._jobs.go_on(request)
        if self.conductor is not None:
            groups, prefills = self.conductor.tick(now)
            for group in groups:
                self._jobs.add_group(group)
            for key, position in prefills:
                stuck = self._requests.get(key)
                if stuck is not None:
                    self._jobs.send_stored(stuck, position)
            self._launch(now)

    def dismiss(self, reason: str, now: float) -> None:
        """Let the requests that are open go on elsewhere, so that the stage becomes idle."""
        if self.conductor is not None:
            self.conductor.dismiss(reason, now)
        elif now - self._dismissed_at >= self._timers.repeat:
            self._dismissed_at = now
            for request in self._requests:
                failed = RowFailed(**ids(request.open.key), error=reason, retry=True)
                self._context.to_stage(0, failed)

    def gateway_lost(self, gateway: str, now: float) -> None:
        """Free what a lost gateway holds."""
        if self.conductor is not None:
            self.conductor.gateway_lost(gateway, now)
            self._launch(now)

    # --- messages ------------------------------------------------------------------------------

    def handle(self, sender: str, header: Data, tensor: Buffer, now: float) -> None:
        """Take in one message.

        Raises:
            UnexpectedMessageError: The message was dropped.
        """
        check = self._context.check_sender
        match header:
            case Open():
                check(sender, header.gateway)
                self._open(header, now)
            case Reserve():
                check(sender, header.gateway)
                if self._requests.is_stale(header.key):
                    self.dropped["stale"] += 1
                else:
                    self._master().reserve(header, now)
            case Resend():
                check(sender, header.gateway)
                self._resend(header)
            case Release():
                self._release(sender, header, now)
            case Live():
                check(sender, self._context.master)
                self._named(header, now)
            case Step():
                check(sender, self._context.neighbour(-1))
                self._check_shape(header.tensor, len(header.rows))
                self._jobs.add_step(header, tensor, now)
            case StepDone():
                check(sender, self.replica.stages[-1].device)
                self._master().step_done(header, now)
                self._launch(now)
            case RowFailed():
                # Perhaps before `Open` came here: it goes to the last stage first.
                self._context.stage_of(self.replica, sender)
                self._master().row_failed(header, now)
                self._launch(now)
            case RequestData():
                request = self._requests.get(header.key)
                if request is not None:
                    self._handle_request(sender, request, header, tensor, now)
                elif self._requests.is_stale(header.key):
                    self.dropped["stale"] += 1
                else:
                    self.dropped["unknown request"] += 1
            case _:
                raise UnexpectedMessageError(f"{type(header).__name__} is not for a stage")

    def _handle_request(
        self, sender: str, request: StageRequest, header: RequestData, tensor: Buffer, now: float
    ) -> None:
        context = self._context
        check = context.check_sender
        match header:
            case Forward():
                check(sender, context.neighbour(-1))
                self._check_shape(header.tensor, None)
                self._jobs.add_chunk(header, tensor, now)
            case Repeat():
                check(sender, context.neighbour(1), context.master)
                if request.receiver is not None:
                    self._streams.report_complete(request)
                else:
                    self._jobs.send_stored(request, header.position)
            case KvChunk():
                self._streams.take_chunk(sender, request, header, tensor)
                context.timing.kv_came(header.key, len(tensor), now)
                if self.conductor is not None:
                    self.conductor.kv_moved(header.key, now)
            case KvCredit():
                self._streams.take_credit(sender, request, header, now)
            case PrefillProgress():
                check(sender, self.replica.stages[-1].device)
                end, waits = header.end_position, header.is_preparing
                self._master().prefill_progress(header.key, end, now, is_preparing=waits)
            case FirstToken():
                check(sender, context.prefill_replica(request).stages[-1].device)
                self._master().first_token(header, now)
                self._launch(now)
            case KvComplete():
                if context.stage_of(self.replica, sender) != header.stage:
                    raise UnexpectedMessageError(f"{sender} does not hold stage {header.stage}")
                self._master().kv_complete(header, now)
                self._launch(now)
            case HandedOver():
                check(sender, context.decode_replica(request).stages[0].device)
                self._master().handed_over(header, now)
            case _:
                raise UnexpectedMessageError(f"{type(header).__name__} is not for a stage")

    def _open(self, message: Open, now: float) -> None:
        key = message.key
        if self._requests.is_stale(key):
            self.dropped["stale"] += 1
            return
        if self._requests.get(key) is None:
            for older in self._requests.older_attempts(key):
                self._release_everywhere(older, now, "a newer attempt began")
            if not self._begin(message, now):
                return
        opened = Opened(**ids(key), replica=self.replica.id, stage=self._context.index)
        self._context.to_gateway(message.gateway, opened)

    def _begin(self, message: Open, now: float) -> bool:
        prefills = message.prefill_replica == self.replica.id
        decodes = message.decode_replica == self.replica.id
        if not (prefills or decodes):
            raise UnexpectedMessageError(f"open does not name replica {self.replica.id}")
        if (self.conductor or self._context.is_last) and not message.prompt_ids:
            raise UnexpectedMessageError("open without prompt ids at a first or last stage")
        grammars = self._context.grammars
        wants_grammar = self._context.is_last and bool(message.sampling.grammar)
        if wants_grammar and grammars is None:
            raise UnexpectedMessageError("open with a grammar at a stage that can make none")
        request = StageRequest(message, now)
        if prefills and not decodes:
            self._streams.open_senders(request, now)
        if decodes and not prefills:
            self._context.prefill_replica(request)  # refuses an unknown one before room is taken
        if self.conductor is not None and not self.conductor.open(message, now):
            return False
        failed = open_kv(self._executor, message, prefills=prefills, decodes=decodes)
        if failed is not None:
            self._context.to_stage(0, failed)
            return False
        if decodes and not prefills:
            # After the room: its map is as long as the prompt, whatever that claims to be.
            self._streams.open_receiver(request)
        if wants_grammar and grammars is not None:
            request.grammar, request.is_held_up = grammars.make(message.sampling), True
        self._requests.add(request)
        self._context.timing.open(message, now)
        return True

    def _release(self, sender: str, message: Release, now: float) -> None:
        request = self._requests.get(message.key)
        if sender == self._context.master:
            self._end(message.key, now)
            return
        gateway = request.open.gateway if request is not None else None
        if gateway is None and self.conductor is not None:
            gateway = self.conductor.reservations.gateway(message.key)
        if gateway is None:
            self.dropped["unknown request"] += 1
            return
        self._context.check_sender(sender, gateway)
        self._release_everywhere(message.key, now, message.reason)

    def _release_everywhere(self, key: RequestKey, now: float, reason: str) -> None:
        if self.conductor is not None:
            self.conductor.release(key, now, reason)
            self._launch(now)
        self._end(key, now)

    def _end(self, key: RequestKey, now: float) -> None:
        request, times = self._requests.end(key, now), self._context.timing.close(key)
        if request is not None:
            self._executor.release(key)
            if times is not None:
                self._context.to_gateway(request.open.gateway, times)

    def _named(self, message: Live, now: float) -> None:
        for key in message.requests:
            request = self._requests.get(key)
            if request is not None:
                request.named_at = now

    def _resend(self, message: Resend) -> None:
        request = self._requests.get(message.key) or self._requests.ended(message.key)
        if request is None or not self._context.is_last:
            self.dropped["unknown request"] += 1
            return
        self._context.check_sender(message.gateway, request.open.gateway)
        rows = [
            token_row(request, index)
            for index in range(max(message.index, 0), len(request.generated))
        ]
        if rows:
            self._context.to_gateway(message.gateway, Tokens(rows=rows))

    # --- helpers -------------------------------------------------------------------------------

    def _launch(self, now: float) -> None:
        if self.conductor is not None:
            for group in self.conductor.launch(now):
                self._jobs.add_group(group)

    def _master(self) -> Conductor:
        if self.conductor is None:
            raise UnexpectedMessageError("a message for the master at another stage")
        return self.conductor

    def _check_shape(self, tensor: TensorMeta, num_rows: int | None) -> None:
        hidden_size = self._executor.config.hidden_size
        if len(tensor.shape) != 2 or tensor.shape[1] != hidden_size or not tensor.shape[0]:
            raise UnexpectedMessageError(
                f"activation of shape {tensor.shape}, expected (rows, {hidden_size})"
            )
        if num_rows is not None and tensor.shape[0] != num_rows:
            raise UnexpectedMessageError(f"{tensor.shape[0]} activations for {num_rows} rows")
