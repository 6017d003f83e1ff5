"""Two gateways as processes, on a real broker and a real Redis: each prompt has one answer.

There are no nodes, so the prompts are wrong ones: their errors come at once, and once each.
"""

import itertools
import json
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker.mqtt import MqttTransport
from broker.topics import PROMPT, REPLY
from broker.transport import Connected, Publication, Received
from tests.support.bus import SITE, free_port, running_broker, wait_for
from tests.support.gateway_process import STOP_SECONDS, environ_for, gateway, get_when
from tests.support.model_folder import write_model_folder

IDS = ("first", "second")
LISTEN_SECONDS = 0.3


class Lamp:
    """A client that asks over MQTT.

    Attributes:
        transport: To be closed.
        answers: How many messages came for each request.
    """

    def __init__(self, transport: MqttTransport) -> None:
        self.transport = transport
        self.answers: dict[str, int] = {}
        self._numbers = itertools.count()
        transport.subscribe([(REPLY.filter(SITE, client="lamp"), REPLY.qos)])
        transport.connect()
        wait_for(transport, Connected)

    def ask(self) -> None:
        """Ask once, and hear what comes in the next moment."""
        name = f"q{next(self._numbers)}"
        self.answers[name] = 0
        body = json.dumps({"request_id": name, "prompt": "7 + 5 =", "top_p": 2}).encode()
        self.transport.publish(Publication(PROMPT.path(SITE, client="lamp"), body, PROMPT.qos))
        while event := self.transport.receive(LISTEN_SECONDS):
            if isinstance(event, Received):
                names = REPLY.match(event.topic)
                assert names is not None
                self.answers[names["request"]] += 1


def refused(url: str) -> dict[str, int]:
    """Return how many prompts a gateway has answered with an error, by its code."""
    found: dict[str, int] = httpx2.get(f"{url}/readyz").json()["details"]["prompts"]["refused"]
    return found


def is_on_the_bus(response: httpx2.Response) -> bool:
    found: dict[str, Any] = response.json()
    return "broker" not in found["reason"]


@pytest.mark.slow
def test_each_prompt_is_answered_by_one_gateway_also_after_it_has_gone(
    mosquitto_path: Path, redis_url: str, tmp_path: Path
) -> None:
    folder = write_model_folder(tmp_path / "model")
    with ExitStack() as stack:
        broker = stack.enter_context(
            running_broker("mosquitto", tmp_path, gateways=IDS, clients=["lamp"])
        )
        processes: dict[str, subprocess.Popen[str]] = {}
        for name in IDS:
            port = free_port()
            environ = environ_for(
                folder,
                tmp_path / name,
                port,
                E2LLM_BROKER=broker.address(name).url,
                E2LLM_REDIS=redis_url,
                E2LLM_SITE=SITE,
            )
            url = f"http://127.0.0.1:{port}"
            processes[url] = stack.enter_context(gateway(environ))
        for url in processes:
            get_when(f"{url}/readyz", is_on_the_bus)
        lamp = Lamp(MqttTransport(broker.address("lamp"), "lamp"))
        stack.callback(lamp.transport.close)

        for _ in range(5):
            lamp.ask()

        [owner] = [url for url in processes if refused(url)]
        [other] = [url for url in processes if url != owner]
        assert set(lamp.answers.values()) == {1}
        processes[owner].send_signal(signal.SIGTERM)
        assert processes[owner].wait(STOP_SECONDS) == 0

        for _ in range(3):
            lamp.ask()

        assert set(lamp.answers.values()) == {1}
        assert refused(other) == {"invalid_value": 3}
