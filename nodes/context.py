"""What the parts of one stage share: who it is, its requests, and where messages go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from broker.codec import Buffer
from broker.events import Event
from broker.plan import Replica
from broker.work import Data, RequestKey
from nodes.executor import StageExecutor
from nodes.grammars import GrammarMaker
from nodes.outgoing import Outgoing, Timers, ToGateway, ToStage
from nodes.requests import RequestTable, StageRequest
from nodes.speculation import MOST_PROPOSED
from nodes.timing import Timing

Lookup = Callable[[str], Replica | None]
"""Returns the replica of an id that any known plan names, or None."""


class UnexpectedMessageError(Exception):
    """A message that this stage does not accept: wrong sender, shape or route.

    The caller counts and logs it; nothing has changed.
    """


@dataclass(frozen=True, slots=True)
class StageSettings:
    """What all stages of a device share.

    Attributes:
        kv_chunk_bytes: Size of a KV chunk, about 20 ms of the measured link.
        kv_window_bytes: KV bytes that one sender may have open towards a stage.
        most_proposed: Ids that a step carries for one request beyond its own; 0: none.
    """

    timers: Timers = field(default_factory=Timers)
    kv_chunk_bytes: int = 64 * 1024
    kv_window_bytes: int = 512 * 1024
    most_proposed: int = MOST_PROPOSED


class StageContext:
    """One stage of one replica, its executor and its outbox."""

    def __init__(
        self,
        replica: Replica,
        index: int,
        executor: StageExecutor,
        lookup: Lookup,
        settings: StageSettings,
        grammars: GrammarMaker | None = None,
    ) -> None:
        self.replica = replica
        self.index = index
        self.executor = executor
        self.settings = settings
        self.grammars = grammars
        self.requests = RequestTable(settings.timers.remember)
        self.timing = Timing(replica.id, index)
        self.dropped: Counter[str] = Counter()
        self.out: list[Outgoing] = []
        self._lookup = lookup

    @property
    def is_last(self) -> bool:
        """Whether this stage holds the head."""
        return self.index == len(self.replica.stages) - 1

    @property
    def master(self) -> str:
        """Device of stage 0."""
        return self.replica.stages[0].device

    def neighbour(self, offset: int) -> str | None:
        """Return the device ``offset`` stages further, or None beyond the ends."""
        index = self.index + offset
        return self.replica.stages[index].device if 0 <= index < len(self.replica.stages) else None

    def stage_of(self, replica: Replica, device: str) -> int:
        """Return which stage of a replica a sender holds."""
        for index, stage in enumerate(replica.stages):
            if stage.device == device:
                return index
        raise UnexpectedMessageError(f"{device} is no stage of {replica.id}")

    def check_sender(self, sender: str, *allowed: str | None) -> None:
        """Refuse a message from anyone but those that the plan names."""
        if sender not in allowed:
            raise UnexpectedMessageError(f"sender {sender} is not the one that the plan names")

    def prefill_replica(self, request: StageRequest) -> Replica:
        """Return the replica that prefills a request."""
        return self._known(request.open.prefill_replica)

    def decode_replica(self, request: StageRequest) -> Replica:
        """Return the replica that decodes a request."""
        return self._known(request.open.decode_replica)

    def to_stage(self, index: int, header: Data, tensor: Buffer = b"") -> None:
        """Send to a stage of this replica."""
        device = self.replica.stages[index].device
        self.out.append(ToStage(self.replica.id, index, device, header, tensor))

    def to_gateway(self, gateway: str, event: Event) -> None:
        """Send to a gateway."""
        self.out.append(ToGateway(gateway, event))

    def _known(self, replica_id: str) -> Replica:
        found = self.replica if replica_id == self.replica.id else self._lookup(replica_id)
        if found is None:
            raise UnexpectedMessageError(f"no plan names replica {replica_id}")
        return found


def ids(key: RequestKey) -> dict[str, Any]:
    """Return the two fields that every header about a request begins with."""
    return {"request_id": key.request_id, "attempt": key.attempt}
