"""Brokers for tests: `python -m broker` on a free port, and how to wait for what arrives."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from broker.access import Credential
from broker.address import BrokerAddress
from broker.credentials import HOME_ASSISTANT_USER
from broker.server import load_or_create_credentials
from broker.transport import Transport, TransportEvent

SITE: Final = "test"
# Long, since a test machine may be busy; nobody waits for it unless something is wrong.
PATIENCE_SECONDS: Final = 15.0

EventT = TypeVar("EventT", bound=TransportEvent)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclass
class BrokerProcess:
    """A broker of its own, with access rules, that can be stopped and started again.

    Attributes:
        kind: ``mosquitto`` or ``amqtt``.
        folder: Where its files go.
        nodes: Users that are nodes; likewise the others. The planner always exists.
        home: Prefix of Home Assistant's discovery; None: it has no part in this fog.
    """

    kind: str
    folder: Path
    nodes: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    home: str | None = None
    port: int = field(default_factory=free_port)
    credentials: dict[str, Credential] = field(init=False)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.credentials = load_or_create_credentials(
            self.folder / "credentials.json",
            self.nodes,
            self.gateways,
            self.clients,
            homes=[] if self.home is None else [HOME_ASSISTANT_USER],
        )

    def address(self, user: str) -> BrokerAddress:
        """The address with the user's credential."""
        return BrokerAddress("127.0.0.1", self.port, user, self.credentials[user].password)

    def start(self) -> None:
        """Start it, and return when it says that clients may connect."""
        assert self.process is None
        command = [sys.executable, "-m", "broker", "--prefer", self.kind, "--site", SITE]
        command += ["--state", str(self.folder), "--port", str(self.port)]
        if self.home is not None:
            command += ["--home-assistant", self.home]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "E2LLM_LOG": "INFO"}
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            if "listening on" in self.log():
                return
            time.sleep(0.02)
        raise RuntimeError(f"{self.kind} did not start:\n{self.log()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it with a signal; return its exit status."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(PATIENCE_SECONDS)

    def log(self) -> str:
        """What it has written since its start."""
        return (self.folder / "log").read_text("utf-8", errors="replace")


@contextlib.contextmanager
def running_broker(
    kind: str,
    folder: Path,
    nodes: Iterable[str] = (),
    gateways: Iterable[str] = (),
    clients: Iterable[str] = (),
    home: str | None = None,
) -> Iterator[BrokerProcess]:
    """Run Mosquitto or amqtt while the block lasts.

    A test that asks for ``mosquitto`` uses the fixture `mosquitto_path`, which skips it
    where there is none.
    """
    broker = BrokerProcess(kind, folder, tuple(nodes), tuple(gateways), tuple(clients), home)
    broker.start()
    try:
        yield broker
    finally:
        if broker.process is not None:
            broker.stop()


def wait_for(
    transport: Transport,
    wanted: type[EventT],
    condition: Callable[[EventT], bool] = lambda _event: True,
    timeout_seconds: float = PATIENCE_SECONDS,
) -> EventT:
    """Return the next event of a type that fulfils the condition; drop those before it."""
    deadline = time.monotonic() + timeout_seconds
    seen: list[TransportEvent] = []
    while (left := deadline - time.monotonic()) > 0:
        event = transport.receive(left)
        if isinstance(event, wanted) and condition(event):
            return event
        if event is not None:
            seen.append(event)
    raise AssertionError(f"no such {wanted.__name__}; instead {str(seen)[:1000]}")
