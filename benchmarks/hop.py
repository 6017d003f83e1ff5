"""Where the time of one hop goes: from a stage's output to the next stage's input.

    python -m benchmarks.hop [--rounds 200] [--hidden 2048] [--json FILE]

Two processes, each pinned to a core as the nodes of `benchmarks.two_nodes` are, pass a decode
step to and fro through Mosquitto with the code that nodes use; nothing is computed. Each part is
the median of its share of a hop, by the machine's one monotonic clock. A node waits for its
turn while the others compute, and what runs after a wait finds cold caches, so the parts are
measured back to back and after a pause as well.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from benchmarks.here import context
from broker.address import BrokerAddress
from broker.codec import decode_frame
from broker.mqtt import MqttTransport
from broker.topics import STAGE_WORK
from broker.transport import Connected, Inbox, Received, TransportEvent
from broker.work import Step, StepRow
from nodes.outbound import Outbound
from nodes.outgoing import ToStage
from nodes.tensors import from_bytes, meta_of, to_bytes
from tests.support.bus import SITE, running_broker, wait_for

DEVICES: Final = ("first", "second")
ROWS: Final = (1, 8)
PAUSES: Final = (0.0, 0.03)
WARM_UP_ROUNDS: Final = 10

# Fresh processes, as nodes are, and safe beside the threads of a transport.
spawn = multiprocessing.get_context("spawn")


class Sent(NamedTuple):
    """Moments of a sender: before and after encoding."""

    began: float
    encoded: float


class Taken(NamedTuple):
    """Moments of a receiver: queued by the network thread, got by the loop, decoded."""

    queued: float
    got: float
    decoded: float


@dataclass(frozen=True)
class Hop:
    """Microseconds of the parts of one hop, medians over both directions.

    Attributes:
        on_the_way: From the call of `publish` until the receiver's network thread has queued
            the message: socket, broker, socket, two wake-ups.
        to_the_loop: Until the receiver's own thread has it.
    """

    rows: int
    pause_ms: float
    encode: int
    on_the_way: int
    to_the_loop: int
    decode: int
    whole: int


class StampedInbox(Inbox):
    """An inbox that knows when the network thread put its last message."""

    def __init__(self) -> None:
        self.queued = 0.0

    def put(self, item: TransportEvent, block: bool = True, timeout: float | None = None) -> None:
        self.queued = time.monotonic()
        super().put(item)


class Peer:
    """One of the two stages."""

    def __init__(self, index: int, address: BrokerAddress, hidden: torch.Tensor) -> None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[index % len(cores)]})
        self._own, self._other = DEVICES[index], DEVICES[1 - index]
        self._inbox = StampedInbox()
        self._outbound = Outbound(SITE, self._own)
        self._hidden = hidden
        self._transport = MqttTransport(address, self._own, inbox=self._inbox)
        self._transport.subscribe([(STAGE_WORK.filter(SITE, device=self._own), STAGE_WORK.qos)])
        self._transport.connect()
        wait_for(self._transport, Connected)

    def send(self, number: int) -> Sent:
        """Send a group, as `nodes.jobs` and `nodes.service` do."""
        began = time.monotonic()
        rows = [StepRow(f"chatcmpl-{n:032d}", 0, 100, 5) for n in range(len(self._hidden))]
        header = Step(group=number, rows=rows, tensor=meta_of(self._hidden))
        message = ToStage("r-0123456789", 1, self._other, header, to_bytes(self._hidden))
        _, publication = self._outbound.publication(message)
        encoded = time.monotonic()
        self._transport.publish(publication)
        return Sent(began, encoded)

    def take(self) -> Taken:
        """Take one in."""
        message = wait_for(self._transport, Received)
        got = time.monotonic()
        STAGE_WORK.match(message.topic)
        header, data = decode_frame(message.payload, STAGE_WORK.message)
        from_bytes(data, header.tensor)
        return Taken(self._inbox.queued, got, time.monotonic())

    def close(self) -> None:
        """Disconnect."""
        self._transport.close()


def answer(address: BrokerAddress, hidden: torch.Tensor, num_rounds: int, results: Any) -> None:
    """Be the second stage, in a process of its own."""
    peer = Peer(1, address, hidden)
    results.put("ready")
    results.put([(peer.take(), peer.send(number)) for number in range(num_rounds)])
    peer.close()


def rounds(
    address: Callable[[str], BrokerAddress], hidden: torch.Tensor, pause: float, num_rounds: int
) -> Iterator[tuple[Sent, Taken]]:
    """Yield sender's and receiver's moments of each hop, in both directions."""
    results = spawn.Queue()
    child = spawn.Process(
        target=answer, args=(address(DEVICES[1]), hidden, num_rounds, results), daemon=True
    )
    child.start()
    peer = Peer(0, address(DEVICES[0]), hidden)
    results.get()
    ours = []
    for number in range(num_rounds):
        time.sleep(pause)
        ours.append((peer.send(number), peer.take()))
    theirs = results.get()
    child.join()
    peer.close()
    for (sent, taken), (their_taken, their_sent) in zip(ours, theirs, strict=True):
        yield sent, their_taken
        yield their_sent, taken


def hop(rows: int, pause: float, moments: list[tuple[Sent, Taken]]) -> Hop:
    def micros(part: Callable[[Sent, Taken], float]) -> int:
        return round(1e6 * statistics.median(part(*each) for each in moments))

    return Hop(
        rows=rows,
        pause_ms=1e3 * pause,
        encode=micros(lambda sent, _: sent.encoded - sent.began),
        on_the_way=micros(lambda sent, taken: taken.queued - sent.encoded),
        to_the_loop=micros(lambda _, taken: taken.got - taken.queued),
        decode=micros(lambda _, taken: taken.decoded - taken.got),
        whole=micros(lambda sent, taken: taken.decoded - sent.began),
    )


def run(num_rounds: int, hidden_size: int) -> list[Hop]:
    found = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_broker("mosquitto", Path(folder), nodes=DEVICES) as broker,
    ):
        for rows in ROWS:
            for pause in PAUSES:
                hidden = torch.randn(rows, hidden_size)
                moments = list(rounds(broker.address, hidden, pause, num_rounds))
                found.append(hop(rows, pause, moments[2 * WARM_UP_ROUNDS :]))
    return found


def table(hops: list[Hop]) -> str:
    lines = [
        "| rows | pause | encode | on the way | to the loop | decode | whole, us |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {each.rows} | {each.pause_ms:.0f} ms | {each.encode} | {each.on_the_way} "
        f"| {each.to_the_loop} | {each.decode} | {each.whole} |"
        for each in hops
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=2048, help="elements of a row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    about = context()
    found = run(WARM_UP_ROUNDS + options.rounds, options.hidden)
    if options.json is not None:
        report = {"context": about, "hops": [asdict(each) for each in found]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(found))


if __name__ == "__main__":
    main()
