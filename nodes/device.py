"""All stages of one device: where a message belongs, whose turn it is to compute. No I/O.

Messages between two stages of this device never leave it; `drain` delivers them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from broker.codec import Buffer
from broker.plan import Plan, Replica
from broker.work import Data, KvChunk
from nodes.compute import Pace
from nodes.context import StageSettings, UnexpectedMessageError
from nodes.executor import StageExecutor
from nodes.grammars import GrammarMaker
from nodes.outgoing import Outgoing, ToStage
from nodes.speculation import Tally
from nodes.stage import StageCore

_KNOWN_REPLICAS = 256
"""Replicas remembered beyond the newest plan, for requests that still drain."""

StageKey = tuple[str, int]


class DeviceCore:
    """The stages that a device holds, of the running and of a coming plan.

    Attributes:
        running: The stage whose job runs, or ran last; what ``pace`` is called for.
        kv_chunks_sent: KV chunks that left for other devices.
        kv_chunks_received: KV chunks that came from others, wanted or not.
    """

    def __init__(
        self, device: str, settings: StageSettings, pace: Pace = lambda cost: None
    ) -> None:
        self.device = device
        self.settings = settings
        self.stages: dict[StageKey, StageCore] = {}
        self.dropped: Counter[str] = Counter()
        self.running: StageKey | None = None
        self.kv_chunks_sent = self.kv_chunks_received = 0
        self._speculated = Tally()
        self._pace = pace
        self._replicas: OrderedDict[str, Replica] = OrderedDict()
        self._turns: list[StageKey] = []

    def learn(self, plan: Plan) -> None:
        """Take in the replicas of a plan, preparing or active."""
        for replica in plan.all_replicas:
            self._replicas[replica.id] = replica
            self._replicas.move_to_end(replica.id)
            for (replica_id, _), stage in self.stages.items():
                if replica_id == replica.id:
                    stage.update(replica)
        while len(self._replicas) > _KNOWN_REPLICAS:
            self._replicas.popitem(last=False)

    def replica(self, replica_id: str) -> Replica | None:
        """Return a replica that some plan named, or None."""
        return self._replicas.get(replica_id)

    def hold(
        self,
        replica: Replica,
        index: int,
        executor: StageExecutor,
        grammars: GrammarMaker | None = None,
    ) -> None:
        """A stage is loaded and can serve; ``grammars`` are its model's."""
        self._replicas.setdefault(replica.id, replica)
        self.stages[replica.id, index] = StageCore(
            replica, index, executor, self.replica, self.settings, self._pace, grammars
        )

    def drop(self, key: StageKey) -> None:
        """A stage is not needed any more."""
        stage = self.stages.pop(key, None)
        if stage is not None:
            self.dropped.update(stage.dropped)
            self._speculated.add(stage.speculated)

    def handle(
        self, sender: str, stage: StageKey, header: Data, tensor: Buffer, now: float
    ) -> None:
        """Give a message to its stage.

        Raises:
            UnexpectedMessageError: It was dropped.
        """
        if sender != self.device and isinstance(header, KvChunk):
            self.kv_chunks_received += 1
        core = self.stages.get(stage)
        if core is None:
            raise UnexpectedMessageError(f"stage {stage[1]} of {stage[0]} is not held here")
        core.handle(sender, header, tensor, now)

    def run_next(self, now: Callable[[], float]) -> bool:
        """Run one job of the stage whose turn it is; False when there is none."""
        self._turns = [k for k in self._turns if k in self.stages]
        self._turns += [k for k in self.stages if k not in self._turns]
        for key in self._turns:
            if self.stages[key].has_work():
                self._turns.remove(key)
                self._turns.append(key)
                self.running = key
                self.stages[key].run_next(now)
                return True
        return False

    def tick(self, now: float) -> None:
        """Run the timers of all stages."""
        for stage in self.stages.values():
            stage.tick(now)

    def gateway_lost(self, gateway: str, now: float) -> None:
        """Free what a lost gateway holds."""
        for stage in self.stages.values():
            stage.gateway_lost(gateway, now)

    def drain(self, now: float) -> list[Outgoing]:
        """Deliver messages between own stages; return the others."""
        leaving: list[Outgoing] = []
        while True:
            batch = [message for stage in self.stages.values() for message in stage.drain()]
            if not batch:
                return leaving
            for message in batch:
                if not isinstance(message, ToStage) or message.device != self.device:
                    self.kv_chunks_sent += isinstance(message.header, KvChunk)
                    leaving.append(message)
                    continue
                try:
                    key = (message.replica, message.stage)
                    self.handle(self.device, key, message.header, message.tensor, now)
                except UnexpectedMessageError as error:
                    self.dropped[str(error)] += 1

    def num_layers(self, key: StageKey) -> int:
        """Return the layers of a stage that is held."""
        return len(self.stages[key].executor.layers)

    @property
    def queue_length(self) -> int:
        """Work items that wait to be computed."""
        return sum(stage.queue_length for stage in self.stages.values())

    @property
    def speculated(self) -> Tally:
        """What came of proposed ids, where this device is the master, since it started."""
        total = Tally()
        for tally in (self._speculated, *(stage.speculated for stage in self.stages.values())):
            total.add(tally)
        return total

    @property
    def kv_used_tokens(self) -> int:
        """KV positions in use, over all stages."""
        return sum(stage.executor.used_tokens for stage in self.stages.values())

    @property
    def kv_kept_tokens(self) -> int:
        """KV positions of ended requests that are kept, over all stages."""
        return sum(stage.executor.kv.retained.tokens for stage in self.stages.values())
