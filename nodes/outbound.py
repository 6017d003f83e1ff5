"""From what the cores want sent to publications: topic, frame, and over which connection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from broker.codec import encode_frame
from broker.topics import GATEWAY_EVENTS, STAGE_CREDIT, STAGE_KV, STAGE_WORK
from broker.transport import Publication
from broker.work import KvChunk, KvCredit
from nodes.outgoing import Outgoing, ToGateway


class Channel(Enum):
    """The two connections of a node; a KV chunk must not delay a step."""

    WORK = "work"
    KV = "kv"


@dataclass(frozen=True, slots=True)
class Outbound:
    """Turns messages of one device into publications."""

    site: str
    device: str

    def publication(self, message: Outgoing) -> tuple[Channel, Publication]:
        """Return the publication of a message and the connection that it takes."""
        if isinstance(message, ToGateway):
            path = GATEWAY_EVENTS.path(self.site, gateway=message.gateway, sender=self.device)
            frame = encode_frame(message.header)
            return Channel.WORK, Publication(path, frame, GATEWAY_EVENTS.qos)
        channel, topic = Channel.WORK, STAGE_WORK
        if isinstance(message.header, KvChunk):
            channel, topic = Channel.KV, STAGE_KV
        elif isinstance(message.header, KvCredit):
            topic = STAGE_CREDIT
        path = topic.path(
            self.site,
            replica=message.replica,
            stage=message.stage,
            device=message.device,
            sender=self.device,
        )
        return channel, Publication(path, encode_frame(message.header, message.tensor), topic.qos)
