"""What the cores of a node want sent; the shell turns it into publications.

The cores know replicas, stages and devices, never topics or MQTT.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.codec import Buffer
from broker.work import Data


@dataclass(frozen=True, slots=True)
class ToStage:
    """A message to one stage; the channel (work, kv, credit) follows from the header's type."""

    replica: str
    stage: int
    device: str
    header: Data
    tensor: Buffer = b""


@dataclass(frozen=True, slots=True)
class ToGateway:
    """An event to one gateway."""

    gateway: str
    header: Data


Outgoing = ToStage | ToGateway


@dataclass(frozen=True, slots=True, kw_only=True)
class Timers:
    """How patient a stage is. All in seconds.

    Attributes:
        repeat: Shortest wait before something unanswered is sent again; a step waits
            at least four times its usual round.
        repeats: Sent again this often without an answer, a request is reported lost.
        grant: A grant without `Open` is void after this.
        announce: The master names its live requests this often, and to gateways those that
            wait for a row.
        forget: A stage frees a request that its master has not named for this long.
        remember: Released requests are remembered for this long.
        admission: A decode master gives up a request whose prefill shows no sign of life.
        gateway_loss: Requests of a lost gateway are released after this.
    """

    repeat: float = 0.5
    repeats: int = 6
    grant: float = 10.0
    announce: float = 5.0
    forget: float = 15.0
    remember: float = 60.0
    admission: float = 120.0
    gateway_loss: float = 10.0
