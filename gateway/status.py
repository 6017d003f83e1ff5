"""What a gateway says of itself on the bus, its last will included."""

from __future__ import annotations

import time

from broker.codec import encode_control
from broker.control import GatewayStatus
from broker.topics import GATEWAY_STATUS
from broker.transport import Publication


def new_session() -> int:
    """Return a session for a process that starts now: UTC milliseconds."""
    return time.time_ns() // 1_000_000


def status_publication(site: str, gateway: str, status: GatewayStatus) -> Publication:
    """Return the retained publication of a gateway's status; with ``lost``, its will."""
    topic = GATEWAY_STATUS.path(site, gateway=gateway)
    return Publication(topic, encode_control(status), GATEWAY_STATUS.qos, retained=True)
