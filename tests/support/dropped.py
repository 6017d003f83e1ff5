"""What Mosquitto says that it dropped."""

from typing import Final

from broker.address import BrokerAddress
from broker.mqtt import MqttTransport
from broker.topics import QoS
from broker.transport import Connected, Received
from tests.support.bus import wait_for

_DROPPED: Final = "$SYS/broker/publish/messages/dropped"
_UPTIME: Final = "$SYS/broker/uptime"


class DroppedMessages:
    """Follows Mosquitto's counter of dropped messages from the broker's start.

    Args:
        planner: The broker's address with the planner's credential, which may read it.

    Mosquitto publishes the counter when it has changed, and what it retains expires after
    60 s: who subscribes later hears nothing of a counter that stays what it is. So this
    client must be there within the first minute.
    """

    def __init__(self, planner: BrokerAddress) -> None:
        self._client = MqttTransport(planner, "dropped-messages")
        self._client.subscribe([(topic, QoS.AT_MOST_ONCE) for topic in (_DROPPED, _UPTIME)])
        self._client.connect()
        wait_for(self._client, Connected)
        self._count: int | None = None

    def count(self) -> int:
        """Return how many messages were dropped until now, after one or two `sys_interval`.

        The uptime changes always. Once it has been published twice from now on, the round of
        publications that began with the first is over, and with it any change of the counter.
        """
        # What is retained marks the present: everything from before stands before it.
        self._client.subscribe([(_UPTIME, QoS.AT_MOST_ONCE)])
        num_rounds = 0
        while num_rounds < 2 or self._count is None:
            message = wait_for(self._client, Received)
            if message.topic == _DROPPED:
                self._count = int(message.payload)
            else:
                num_rounds = 0 if message.retained else num_rounds + 1
        return self._count

    def close(self) -> None:
        """Disconnect."""
        self._client.close()
