"""Connections through a wire: whole, slow, cut."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from broker.conditions import Condition
from fog.chaos.wires import Relay, Wire

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def listening(handle: Handler) -> AsyncIterator[int]:
    """Serve on a free port, and see every connection to its end."""
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        try:
            await handle(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.wait_for(asyncio.gather(*tasks), 20)


@asynccontextmanager
async def wired(wire: Wire) -> AsyncIterator[int]:
    """Run an echo server behind a wire; give the port of the near end."""
    async with listening(echo) as far, listening(Relay(wire, "127.0.0.1", far).serve) as near:
        yield near


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()
    await writer.wait_closed()


async def is_silent(reader: asyncio.StreamReader, seconds: float = 0.2) -> bool:
    try:
        await asyncio.wait_for(reader.read(1), seconds)
    except TimeoutError:
        return True
    return False


async def test_bytes_pass_both_ways_and_so_does_the_end() -> None:
    async with wired(Wire()) as port, connection(port) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write_eof()
        assert await reader.read() == b""


async def test_over_a_cut_wire_nothing_passes_and_nobody_is_told() -> None:
    wire = Wire()
    async with wired(wire) as port, connection(port) as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"

        wire.suffer(Condition(cut=True))
        writer.write(b"b")
        async with connection(port) as (late_reader, late_writer):
            late_writer.write(b"c")

            assert await is_silent(reader)
            assert await is_silent(late_reader)
            assert not reader.at_eof()
            # What was on the way arrives when the wire is whole again.
            wire.suffer(Condition())
            assert await reader.readexactly(1) == b"b"
            assert await late_reader.readexactly(1) == b"c"


async def test_an_end_that_closes_meanwhile_is_heard_of_when_the_wire_is_whole() -> None:
    wire = Wire()
    async with wired(wire) as port, connection(port) as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        wire.suffer(Condition(cut=True))
        writer.write_eof()
        assert await is_silent(reader)

        wire.suffer(Condition())

        assert await reader.read() == b""


async def test_a_slow_wire_has_its_rate_for_all_connections_together() -> None:
    wire = Wire()
    wire.suffer(Condition(link_bytes_per_second=100_000))
    async with wired(wire) as port:
        began = time.monotonic()

        async def send() -> None:
            async with connection(port) as (reader, writer):
                writer.write(bytes(10_000))
                await reader.readexactly(10_000)

        await asyncio.gather(send(), send())

        # 20 kB up at 100 kB/s, and the last of it down again; never faster.
        assert time.monotonic() - began >= 0.2


async def test_without_a_broker_a_device_is_refused() -> None:
    async with wired(Wire()) as port:
        pass
    # Nobody listens there any more.
    async with (
        listening(Relay(Wire(), "127.0.0.1", port).serve) as near,
        connection(near) as (reader, _),
    ):
        assert await reader.read() == b""
