"""What one round trip over the bus costs, by broker, QoS, size and TCP_NODELAY.

    python -m benchmarks.bus [--rounds 300] [--json FILE]

Two processes, as two nodes are: one publishes, the other sends every message back, so a round
trip is two messages through the broker. Each figure stands beside a plain TCP echo between
two processes, measured in the same run: the ratio travels from machine to machine, the
microseconds do not. Brokers run with the configuration that `python -m broker` writes, so
TCP_NODELAY is always set on their side; "off" is about the clients.
"""

import argparse
import contextlib
import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.here import context
from broker.address import BrokerAddress
from broker.mqtt import MqttTransport
from broker.server import find_mosquitto
from broker.topics import DEVICE_STATUS, PLANNER_USER, QoS
from broker.transport import Connected, Publication, Received
from tests.support.bus import SITE, running_broker, wait_for

SIZES: Final = (4 << 10, 64 << 10)
WARM_UP_ROUNDS: Final = 20
# A round without TCP_NODELAY takes up to 90 ms; enough of them say so.
MAX_SECONDS: Final = 6.0
THERE: Final = DEVICE_STATUS.path(SITE, device="there")
BACK: Final = DEVICE_STATUS.path(SITE, device="back")

# Fresh processes, as nodes are, and safe beside the threads of a transport.
spawn = multiprocessing.get_context("spawn")


class DelayedTransport(MqttTransport):
    """The transport without TCP_NODELAY."""

    def _on_socket_open(self, _client: Any, _data: Any, _connection: Any) -> None:
        pass


@dataclass(frozen=True)
class Figure:
    """One row: round trips in microseconds, and against the TCP echo of the same size."""

    bus: str
    no_delay: bool
    qos: int | None
    num_bytes: int
    num_rounds: int
    p50_us: float
    p99_us: float
    p50_ratio: float
    p99_ratio: float


def measure(round_trip: Callable[[], None], num_rounds: int) -> list[float]:
    """Return the sorted seconds of up to ``num_rounds`` round trips."""
    for _ in range(WARM_UP_ROUNDS):
        round_trip()
    seconds: list[float] = []
    end = time.perf_counter() + MAX_SECONDS
    while len(seconds) < num_rounds and (started := time.perf_counter()) < end:
        round_trip()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def connected(url: str, client_id: str, no_delay: bool, topic: str, qos: QoS) -> MqttTransport:
    transport = (MqttTransport if no_delay else DelayedTransport)(
        BrokerAddress.parse(url), client_id
    )
    transport.subscribe([(topic, qos)])
    transport.connect()
    wait_for(transport, Connected)
    return transport


def echo_bus(url: str, no_delay: bool, qos: QoS, ready: Any) -> None:
    """Send every message back, in a process of its own, until it is terminated."""
    transport = connected(url, "echo", no_delay, THERE, qos)
    ready.set()
    while True:
        event = transport.receive()
        if isinstance(event, Received):
            transport.publish(Publication(BACK, event.payload, qos))


def echo_tcp(listener: socket.socket, ready: Any) -> None:
    ready.set()
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(1 << 20):
        connection.sendall(data)


@contextlib.contextmanager
def child(target: Callable[..., None], *arguments: Any) -> Iterator[None]:
    ready = spawn.Event()
    process = spawn.Process(target=target, args=(*arguments, ready), daemon=True)
    process.start()
    try:
        if not ready.wait(30):
            raise RuntimeError("the echo process did not start")
        yield
    finally:
        process.terminate()
        process.join()


def tcp_seconds(num_bytes: int, num_rounds: int) -> list[float]:
    payload = bytes(num_bytes)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        child(echo_tcp, listener),
        socket.create_connection(listener.getsockname()) as connection,
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(num_bytes)

        def round_trip() -> None:
            connection.sendall(payload)
            view = memoryview(buffer)
            while view:
                view = view[connection.recv_into(view) :]

        return measure(round_trip, num_rounds)


def bus_seconds(
    url: str, no_delay: bool, qos: QoS, num_rounds: int
) -> Iterator[tuple[int, list[float]]]:
    with child(echo_bus, url, no_delay, qos):
        transport = connected(url, "sender", no_delay, BACK, qos)
        for num_bytes in SIZES:
            message = Publication(THERE, bytes(num_bytes), qos)

            def round_trip(message: Publication = message) -> None:
                transport.publish(message)
                wait_for(transport, Received)

            yield num_bytes, measure(round_trip, num_rounds)
        transport.close()


def run(num_rounds: int) -> list[Figure]:
    plain = {size: tcp_seconds(size, num_rounds) for size in SIZES}
    figures = []

    def add(bus: str, no_delay: bool, qos: QoS | None, size: int, seconds: list[float]) -> None:
        p50, p99 = quantile(seconds, 0.5), quantile(seconds, 0.99)
        figures.append(
            Figure(
                bus=bus,
                no_delay=no_delay,
                qos=None if qos is None else int(qos),
                num_bytes=size,
                num_rounds=len(seconds),
                p50_us=round(p50 * 1e6, 1),
                p99_us=round(p99 * 1e6, 1),
                p50_ratio=round(p50 / quantile(plain[size], 0.5), 1),
                p99_ratio=round(p99 / quantile(plain[size], 0.99), 1),
            )
        )

    for size, seconds in plain.items():
        add("tcp", True, None, size, seconds)
    for kind in ("mosquitto", "amqtt"):
        if kind == "mosquitto" and find_mosquitto() is None:
            print("Mosquitto is not installed: its rows are missing")
            continue
        with tempfile.TemporaryDirectory() as folder, running_broker(kind, Path(folder)) as broker:
            url = broker.address(PLANNER_USER).url
            for no_delay in (True, False):
                for qos in (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE):
                    for size, seconds in bus_seconds(url, no_delay, qos, num_rounds):
                        add(kind, no_delay, qos, size, seconds)
    return figures


def table(figures: list[Figure]) -> str:
    lines = [
        "| bus | client TCP_NODELAY | QoS | bytes | rounds "
        "| p50 us | p99 us | p50 / TCP | p99 / TCP |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in figures:
        qos = "-" if each.qos is None else each.qos
        lines.append(
            f"| {each.bus} | {'on' if each.no_delay else 'off'} | {qos} | {each.num_bytes} "
            f"| {each.num_rounds} | {each.p50_us:.0f} | {each.p99_us:.0f} "
            f"| {each.p50_ratio:.1f} | {each.p99_ratio:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    about, figures = context("paho-mqtt", "amqtt"), run(options.rounds)
    report = {"context": about, "figures": [asdict(each) for each in figures]}
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(figures))


if __name__ == "__main__":
    main()
