"""A node's two connections to the broker, into one inbox. Knows no stages and no torch.

Control and work with the last will on one, KV on the other, so that a chunk never delays a
step. Each client id is the same in every session.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence

from broker.codec import encode_control
from broker.control import DeviceState, DeviceStatus
from broker.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_STATUS,
    DEVICE_TENSORS,
    GATEWAY_STATUS,
    MODEL,
    PLAN,
    STAGE_CREDIT,
    STAGE_KV,
    STAGE_WORK,
    QoS,
)
from broker.traffic import Traffic
from broker.transport import Disconnected, Inbox, Publication, Transport
from nodes.emulation import EmulatedInbox, EmulatedLink, EmulatedTransport
from nodes.outbound import Channel

Filters = Sequence[tuple[str, QoS]]
Dial = Callable[[str, Filters, Publication | None, Inbox], Transport]
"""Begins to connect: client id, subscriptions, last will, inbox."""


class Connections:
    """Opens, replaces and closes the connections of one device.

    Args:
        dial: Makes a transport that subscribes and connects.
        link: Emulated link to put in between; None: the real one as it is.
    """

    def __init__(
        self,
        device: str,
        site: str,
        dial: Dial,
        *,
        software: str = "",
        link: EmulatedLink | None = None,
    ) -> None:
        self.device, self.site = device, site
        self.inbox: Inbox = queue.SimpleQueue()
        self._dial = dial
        self._software = software
        self._link = link
        self._transports: dict[Channel, Transport] = {}
        self._session = 0
        self._past = Traffic()

    @property
    def work_client(self) -> str:
        """Client id of the connection for control and work."""
        return self.device

    @property
    def kv_client(self) -> str:
        """Client id of the connection for KV."""
        return f"{self.device}~kv"

    def open(self, session: int) -> None:
        """Begin to connect; `broker.transport.Connected` events arrive in the inbox."""
        topic = STAGE_KV
        filters = [(topic.filter(self.site, device=self.device), topic.qos)]
        self._transports[Channel.KV] = self._connect(self.kv_client, filters, None, Channel.KV)
        self._open_work(session)

    def reopen(self, session: int) -> None:
        """Connect again as a later session: a last will can only be set when connecting."""
        past = self._transports.pop(Channel.WORK)
        self._past += past.traffic
        past.close()
        self._open_work(session)

    def _open_work(self, session: int) -> None:
        self._session = session
        site, device = self.site, self.device
        own = [
            (topic.filter(site, device=device), topic.qos) for topic in (STAGE_WORK, STAGE_CREDIT)
        ]
        own += [(t.path(site, device=device), t.qos) for t in (DEVICE_STATUS, DEVICE_ASSIGNMENT)]
        everybodys = (MODEL, PLAN, GATEWAY_STATUS, DEVICE_TENSORS)
        common = [(topic.filter(site), topic.qos) for topic in everybodys]
        will = self.status(DeviceState.LOST)
        transport = self._connect(self.work_client, [*own, *common], will, Channel.WORK)
        self._transports[Channel.WORK] = transport

    def _connect(
        self, client: str, filters: Filters, will: Publication | None, channel: Channel
    ) -> Transport:
        if self._link is None:
            return self._dial(client, filters, will, self.inbox)
        is_kv = channel is Channel.KV
        inbox = EmulatedInbox(self._link, self.inbox, is_kv=is_kv)
        transport = self._dial(client, filters, will, inbox)
        return EmulatedTransport(transport, self._link, is_kv=is_kv)

    def status(self, state: DeviceState) -> Publication:
        """Return the publication of this device's status in this session."""
        status = DeviceStatus(
            state=state, session=self._session, software=self._software, pid=os.getpid()
        )
        return Publication(
            DEVICE_STATUS.path(self.site, device=self.device),
            encode_control(status),
            DEVICE_STATUS.qos,
            retained=True,
        )

    def publish(self, publication: Publication, channel: Channel = Channel.WORK) -> None:
        """Publish; see `broker.transport.Transport.publish` for what it raises."""
        self._transports[channel].publish(publication)

    @property
    def traffic(self) -> Traffic:
        """What went over all connections so far; may be asked by any thread."""
        return sum((each.traffic for each in list(self._transports.values())), self._past)

    def wake(self) -> None:
        """End a wait on the inbox, from another thread or a signal."""
        self.inbox.put(Disconnected(self.work_client, "the node stops"))

    def close(self) -> None:
        """Say goodbye and disconnect; safe to call twice and from another thread."""
        work = self._transports.get(Channel.WORK)
        if work is not None:
            work.close(self.status(DeviceState.LOST))
        kv = self._transports.get(Channel.KV)
        if kv is not None:
            kv.close()
        if self._link is not None:
            self._link.close()
