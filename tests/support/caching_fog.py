"""The fog of `tests.support.pipeline` with a gateway that lets stages keep KV of prompts."""

from typing import Any

import msgspec.structs

from broker.events import Event, Granted, LossKind, Lost
from broker.plan import Replica
from broker.prefix import Prefix, kv_identity, prefix_of
from broker.work import Data, KvChunk, Open, Reserve
from nodes.compute import JobCost
from nodes.outgoing import ToStage
from tests.support.pipeline import SmallFog


class CachingFog(SmallFog):
    """Grants say what is kept, and `Open` says what is used of it.

    Attributes:
        is_on: False: the gateway knows nothing of it, as one of the last version.
        cached: Leading positions of each request's prompt that its last attempt took as kept.
        held: Those that the decode replica had.
        computed: Positions of prompts that first stages have computed.
        sent: Positions, summed over layers, of KV that was sent.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self.is_on = True
        self.cached: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.computed = 0
        self.sent = 0
        self._granted: dict[tuple[str, int, str], int] = {}
        self._skips: set[str] = set()
        super().__init__(*arguments, pace=self._count, **more)

    def again(self, request_id: str, lost: Lost | None = None) -> None:
        """Queue a request again, without what it did not find."""
        if lost is not None and lost.kind is LossKind.UNCACHED:
            self._skips.add(request_id)
        super().again(request_id, lost)

    def kept(self) -> dict[str, int]:
        """Return how many positions each device keeps of ended requests."""
        return {device: core.kv_kept_tokens for device, core in self.devices.items()}

    def forget(self, device: str) -> None:
        """Let a device keep nothing of ended requests."""
        for stage in self.devices[device].stages.values():
            stage.executor.kv.retained.shrink(0)

    def _count(self, cost: JobCost) -> None:
        if cost.embedding and not cost.is_decode:
            self.computed += cost.rows

    def _prefix(self, request_id: str) -> Prefix:
        ids = self.answers[request_id].prompt_ids
        return prefix_of(kv_identity(self.plan), ids, self.plan.chunk_tokens)

    def _event(self, sender: str, event: Event) -> None:
        if isinstance(event, Granted) and not self.answers[event.request_id].is_open:
            self._granted[event.request_id, event.attempt, event.replica] = event.held_tokens
        super()._event(sender, event)

    def _send(self, replica: Replica, stage: int, device: str, header: Data) -> None:
        if self.is_on and isinstance(header, Reserve) and header.request_id not in self._skips:
            prefix = self._prefix(header.request_id).within(header.known_tokens - 1)
            header = msgspec.structs.replace(header, prefix=prefix)
        elif self.is_on and isinstance(header, Open):
            header = self._with_kept(header)
        super()._send(replica, stage, device, header)

    def _with_kept(self, message: Open) -> Open:
        name, prefill, decode = (
            message.request_id,
            message.prefill_replica,
            message.decode_replica,
        )
        self.cached[name] = self._granted[name, message.attempt, prefill]
        held = 0 if prefill == decode else self._granted[name, message.attempt, decode]
        self.held[name] = held
        return msgspec.structs.replace(
            message, prefix=self._prefix(name), cached_tokens=self.cached[name], held_tokens=held
        )

    def _to_device(self, sender: str, message: ToStage) -> None:
        if isinstance(message.header, KvChunk):
            self.sent += len(message.header.layers) * message.header.num_positions
        super()._to_device(sender, message)
