"""paho-mqtt: a stream, an error and a cancelled request, under MQTT 3.1.1 or 5.

E2LLM_BROKER=$(cat ~/.local/state/e2llm/8080/mqtt-url) python mqtt_paho.py --protocol 5

Under 3.1.1 the request's id is the last level of the topic of its replies. Under 5 the client
chooses the topic, below its own replies, and each of them brings the correlation data back.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

TOPICS = "e2llm/v1/local"
QUESTION = [{"role": "user", "content": "What is 7 plus 5?"}]


class Fog:
    """Asks over MQTT; one request at a time is enough here."""

    def __init__(self, url: str, protocol: MQTTProtocolVersion) -> None:
        broker = urlsplit(url)
        assert broker.hostname is not None
        assert broker.username is not None
        self._user = broker.username
        self._heard: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        self._client.username_pw_set(broker.username, broker.password)
        self._client.on_message = self._hear
        # Published by the broker when this process dies: nobody would read what comes.
        everything = json.dumps({"cancel": "*"})
        self._client.will_set(f"{TOPICS}/prompts/{self._user}", everything, qos=1)
        self._client.connect(broker.hostname, broker.port or 1883)
        self._client.loop_start()
        self._subscribe()

    def _subscribe(self) -> None:
        # Replies are not retained: nothing is asked before the broker has the subscription.
        is_subscribed: queue.Queue[None] = queue.Queue()
        self._client.on_subscribe = lambda *_: is_subscribed.put(None)
        self._client.subscribe(f"{TOPICS}/replies/{self._user}/#", qos=1)
        is_subscribed.get(timeout=10)

    def _hear(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        if message.properties is not None:
            # paho makes the attributes of its properties at run time.
            request_id = message.properties.CorrelationData.decode()  # type: ignore[attr-defined]
        else:
            request_id = message.topic.rpartition("/")[2]
        self._heard.put((request_id, json.loads(message.payload)))

    def publish(self, correlation: str, **body: Any) -> None:
        """Publish a prompt, or a cancellation."""
        properties = None
        if self._client.protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic = f"{TOPICS}/replies/{self._user}/answers"
            properties.CorrelationData = correlation.encode()
            # The broker forgets what nobody has taken by then, and the gateway ends it.
            properties.MessageExpiryInterval = 60
        topic = f"{TOPICS}/prompts/{self._user}"
        self._client.publish(topic, json.dumps(body), qos=1, properties=properties)

    def ask(self, request_id: str, **body: Any) -> Iterator[dict[str, Any]]:
        """Ask, and yield what comes back; the last message has ``done``, or is the answer."""
        self.publish(request_id, request_id=request_id, **body)
        while True:
            about, message = self._heard.get(timeout=60)
            if about == request_id:
                yield message
                if message.get("done") or not body.get("stream"):
                    return

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


def main() -> None:
    """Show all three."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--protocol", choices=("3.1.1", "5"), default="5")
    is_v5 = parser.parse_args().protocol == "5"
    protocol = MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311
    fog = Fog(os.environ["E2LLM_BROKER"], protocol)

    for message in fog.ask("stream", messages=QUESTION, stream=True):
        for choice in message.get("choices", ()):
            print(choice["delta"].get("content") or "", end="", flush=True)
        if message.get("done"):
            print(f"\n{message['usage']['completion_tokens']} tokens")

    for message in fog.ask("wrong", messages=QUESTION, model="gpt-4"):
        print(f"Refused: {message['error']['code']}")

    # A client that disconnects does not end its requests; cancelling does.
    long = fog.ask("long", messages=QUESTION, stream=True, max_tokens=1000, ignore_eos=True)
    for number, message in enumerate(long):
        if number == 10:
            fog.publish("long", cancel="long")
        if message.get("done"):
            print(f"Left in the middle: {message['error']['code']}")
    fog.close()


if __name__ == "__main__":
    main()
