"""KV transfer of one stage: sends what prefill produced, takes in what decode needs.

Glue between the executor's KV and the pure streams of `nodes.transfer`.
"""

from __future__ import annotations

import zlib

from broker.codec import Buffer
from broker.plan import LayerRange
from broker.work import KvChunk, KvComplete, KvCredit, RowFailed
from nodes.context import StageContext, UnexpectedMessageError, ids
from nodes.outgoing import ToStage
from nodes.requests import StageRequest
from nodes.transfer import ChunkPlace, KvReceiver, KvSender


class KvStreams:
    """The KV streams of one stage, in both directions."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._executor = context.executor
        self._settings = context.settings

    def open_receiver(self, request: StageRequest) -> None:
        """Expect KV of all known positions that decode will see and that are not here."""
        own, known = self._executor.layers, request.open.known_tokens
        request.receiver = KvReceiver(
            own,
            self._first_positions(request, own),
            known,
            self._settings.kv_window_bytes,
        )

    def open_senders(self, request: StageRequest, now: float) -> None:
        """Prepare a stream to every decode stage that holds some of the same layers."""
        own, known = self._executor.layers, request.open.known_tokens
        for index, stage in enumerate(self._context.decode_replica(request).stages):
            shared = stage.layers.overlap(own)
            if shared is not None:
                request.senders[index] = KvSender(
                    shared,
                    self._first_positions(request, shared),
                    known,
                    self._executor.kv_entry_bytes,
                    self._settings.kv_chunk_bytes,
                    request.open.kv_credit_bytes,
                    now,
                )

    def produce(self, request: StageRequest, start: int, end: int, now: float) -> None:
        """Positions ``[start, end)`` are in the KV: send what the credit allows."""
        if start == request.open.cached_tokens:
            # With the first chunk, not with `Open`, which may be faster here than there.
            start = 0
        for index, sender in request.senders.items():
            sender.produce(start, end)
            self._pump(request, index, sender, now)

    def take_chunk(self, device: str, request: StageRequest, chunk: KvChunk, data: Buffer) -> None:
        """Write a chunk and answer with the new offsets."""
        receiver = request.receiver
        if receiver is None:
            raise UnexpectedMessageError("KV for a request that prefills in this replica")
        prefill = self._context.prefill_replica(request)
        sender_stage = self._context.stage_of(prefill, device)
        theirs = prefill.stages[sender_stage].layers
        if chunk.layers.start < theirs.start or theirs.end < chunk.layers.end:
            raise UnexpectedMessageError("KV of layers that the sender does not hold")
        if chunk.tensor.shape[2:3] != (chunk.num_positions,):
            raise UnexpectedMessageError("KV chunk whose tensor has other positions")
        if zlib.crc32(data) != chunk.checksum:
            raise UnexpectedMessageError("KV chunk with a wrong checksum")
        place = ChunkPlace(
            chunk.layers, chunk.position, chunk.num_positions, chunk.offset, len(data)
        )
        key = request.open.key
        was_complete = receiver.is_complete
        try:
            receiver.check(place)
            if not was_complete:
                self._executor.write_kv(key, chunk.layers, chunk.position, data, chunk.tensor)
        except ValueError as error:
            raise UnexpectedMessageError(str(error)) from error
        # All of them come over one link, where what many may send at once would pile up.
        num_receiving = sum(
            other.receiver is not None and not other.receiver.is_complete
            for other in self._context.requests
        )
        received, credit = receiver.accept(sender_stage, place, chunk.total, num_receiving)
        answer = KvCredit(**ids(key), received=received, credit=credit)
        self._context.out.append(ToStage(prefill.id, sender_stage, device, answer))
        if receiver.is_complete and not was_complete:
            self._executor.set_length(key, receiver.num_positions)
            self.report_complete(request)

    def report_complete(self, request: StageRequest) -> None:
        """Tell the master that every layer has every position, and tokens can be chosen, if so."""
        if request.receiver is not None and request.receiver.is_complete and request.can_choose:
            header = KvComplete(**ids(request.open.key), stage=self._context.index)
            self._context.to_stage(0, header)

    def take_credit(self, device: str, request: StageRequest, credit: KvCredit, now: float) -> None:
        """Take in the receiver's offsets and send on."""
        index = self._context.stage_of(self._context.decode_replica(request), device)
        sender = request.senders.get(index)
        if sender is None:
            raise UnexpectedMessageError(f"credit for a stream to {device} that does not exist")
        sender.confirm(credit.received, credit.credit, now)
        self._pump(request, index, sender, now)

    def tick(self, request: StageRequest, now: float) -> None:
        """Go back where a stream stands still; give the request up after n times."""
        timers = self._settings.timers
        for index, sender in request.senders.items():
            if not sender.go_back_if_stuck(now, timers.repeat):
                continue
            if sender.repeats > timers.repeats:
                device = self._context.decode_replica(request).stages[index].device
                text = f"KV transfer to {device} stands still"
                header = RowFailed(**ids(request.open.key), error=text, retry=True)
                self._context.to_stage(0, header)
                request.senders.clear()
                return
            self._pump(request, index, sender, now)

    def _first_positions(self, request: StageRequest, layers: LayerRange) -> list[int]:
        """Return, for each layer, the first position that has to be sent."""
        opened = request.open
        seen = self._executor.first_positions(layers, opened.known_tokens)
        return [max(first, opened.held_tokens) for first in seen]

    def _pump(self, request: StageRequest, index: int, sender: KvSender, now: float) -> None:
        key = request.open.key
        decode = self._context.decode_replica(request)
        for place in sender.take(now):
            meta, data = self._executor.read_kv(
                key, place.layers, place.position, place.position + place.num_positions
            )
            header = KvChunk(
                **ids(key),
                layers=place.layers,
                position=place.position,
                num_positions=place.num_positions,
                offset=place.offset,
                total=sender.total,
                checksum=zlib.crc32(data),
                tensor=meta,
            )
            device = decode.stages[index].device
            self._context.out.append(ToStage(decode.id, index, device, header, data))
