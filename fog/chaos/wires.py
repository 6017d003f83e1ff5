"""The wires between devices and the broker of a local fog: relays that can be cut and slowed.

Run as ``python -m fog.chaos.wires --broker HOST:PORT --conditions FILE --wire ID=PORT ...``.
A cut wire holds what either end sends and tells neither that the other has gone, as a pulled
plug does; bytes that were on the way arrive when it is whole again. Connections that are made
meanwhile wait as well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from broker.conditions import Condition, ConditionsFile
from fog.ports import LOOPBACK

POLL_SECONDS: Final = 0.02
READ_BYTES: Final = 64 * 1024


class Wire:
    """One device's link; its connections share the rate, each way by itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rate: float | None = None
        self._busy_until = {"up": 0.0, "down": 0.0}
        self._whole = asyncio.Event()
        self._whole.set()

    def suffer(self, condition: Condition) -> None:
        """Be in that condition from now on."""
        self._rate = condition.link_bytes_per_second
        if condition.cut:
            self._whole.clear()
        else:
            self._whole.set()

    async def passed(self, direction: str, num_bytes: int) -> None:
        """Return when so many bytes have passed in a direction."""
        if self._rate is not None and num_bytes:
            now = self._clock()
            until = max(now, self._busy_until[direction]) + num_bytes / self._rate
            self._busy_until[direction] = until
            await asyncio.sleep(until - now)
        await self._whole.wait()


class Relay:
    """Takes connections of one device and carries them over its wire."""

    def __init__(self, wire: Wire, host: str, port: int) -> None:
        self._wire = wire
        self._host, self._port = host, port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either end closes it."""
        try:
            await self._wire.passed("up", 0)
            try:
                far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            except OSError:
                return  # No broker: the device is refused, as it would be without a wire.
            with contextlib.closing(far_writer):
                for end in (writer, far_writer):
                    end.get_extra_info("socket").setsockopt(
                        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
                    )
                up = asyncio.create_task(self._carry("up", reader, far_writer))
                down = asyncio.create_task(self._carry("down", far_reader, writer))
                try:
                    await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in (up, down):
                        task.cancel()
                    await asyncio.gather(up, down, return_exceptions=True)
        finally:
            writer.close()

    async def _carry(
        self, direction: str, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = await source.read(READ_BYTES)
                await self._wire.passed(direction, len(data))
                if not data:
                    return
                target.write(data)
                await target.drain()


async def run(broker: tuple[str, int], wires: dict[str, int], conditions: Path) -> None:
    """Relay until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    made = {name: Wire() for name in wires}
    servers = [
        await asyncio.start_server(Relay(made[name], *broker).serve, LOOPBACK, port)
        for name, port in wires.items()
    ]
    file = ConditionsFile(conditions)
    while not stop.is_set():
        for name, wire in made.items():
            wire.suffer(file.of(name))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), POLL_SECONDS)
    for server in servers:
        server.close()


def main(argv: Sequence[str]) -> None:
    """Read the command line and relay."""
    parser = argparse.ArgumentParser(prog="python -m fog.chaos.wires", description=__doc__)
    parser.add_argument("--broker", required=True, metavar="HOST:PORT")
    parser.add_argument("--conditions", required=True, type=Path, metavar="FILE")
    parser.add_argument("--wire", required=True, action="append", metavar="ID=PORT")
    options = parser.parse_args(argv)
    host, _, port = options.broker.rpartition(":")
    wires = {name: int(number) for name, _, number in (w.rpartition("=") for w in options.wire)}
    asyncio.run(run((host, int(port)), wires, options.conditions))


if __name__ == "__main__":
    main(sys.argv[1:])
