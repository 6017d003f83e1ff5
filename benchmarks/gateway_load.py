"""Many streaming clients on one gateway, with stand-in nodes: what the gateway itself costs.

    python -m benchmarks.gateway_load [--clients 500] [--tokens 200] [--step 0.1] [--json FILE]

One `python -m gateway` on a core of its own, Mosquitto, Redis for its journal, and a process that
answers as nodes do (grants, openings, a token of every request each step, several rows to a
message), but computes nothing. All clients ask at once and stream. The time of a token is from
when the stand-in has it until the client has read it: bus, gateway, HTTP. Memory is the gateway's
own; processor seconds per token say what one core could stream.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.here import context
from broker.address import BrokerAddress
from broker.codec import decode_control, decode_frame, encode_control, encode_frame
from broker.control import DeviceState, DeviceStatus, ModelManifest
from broker.events import Event, Granted, GrantState, Opened, TokenRow, Tokens
from broker.mqtt import MqttTransport
from broker.placement import replica_id
from broker.plan import LayerRange, Plan, PlanState, Rates, Replica, Role, Stage
from broker.registry import parse_config
from broker.topics import (
    DEVICE_STATUS,
    GATEWAY_EVENTS,
    MODEL,
    PLAN,
    PLANNER_USER,
    STAGE_WORK,
)
from broker.transport import Publication, Received
from broker.work import Open, Release, Resend, Reserve
from fog.model_choice import DEMO_MODEL
from fog.redis_server import find_redis_server
from fog.serving.sample import Sample
from fog.serving.server import Dialect, open_server
from tests.support.bus import SITE, free_port, running_broker, wait_for

DEVICE: Final = "node-1"
GATEWAY: Final = "gateway-1"
CONTEXT_TOKENS: Final = 512
PATIENCE_SECONDS: Final = 60.0
# Of the demo model's vocabulary: letters and words, no special tokens.
FIRST_TOKEN: Final = 40
NUM_TOKENS: Final = 50

# Fresh processes, and safe beside the threads of a transport.
spawn = multiprocessing.get_context("spawn")


# --- nodes that compute nothing -----------------------------------------------------------


def the_plan(manifest: ModelManifest, slots: int) -> Plan:
    """Return a plan of one replica that does both, on one device."""
    layers = LayerRange(0, parse_config(manifest.config).num_layers)
    stage = Stage(device=DEVICE, layers=layers, embedding=True, head=True, predicted_seconds=0.01)
    replica = Replica(
        id=replica_id(manifest.revision, manifest.weights, [(DEVICE, layers)]),
        role=Role.BOTH,
        slots=slots,
        prefill_slots=slots,
        kv_tokens=slots * CONTEXT_TOKENS,
        stages=[stage],
        predicted=Rates(prefill_tokens_per_second=1e5, tpot_seconds=0.1),
    )
    return Plan(
        version=1,
        state=PlanState.ACTIVE,
        model=manifest.name,
        revision=manifest.revision,
        weights=manifest.weights,
        kv_format=manifest.kv_format,
        kv_transfer=manifest.kv_transfer,
        chunk_tokens=128,
        context_tokens=CONTEXT_TOKENS,
        replicas=[replica],
    )


@dataclass
class StandIn:
    """A device that grants, opens, and gives every request a token each step.

    Attributes:
        sent: Request id to when each of its tokens was had.
    """

    transport: MqttTransport
    step_seconds: float
    group_rows: int
    running: dict[str, Open] = field(default_factory=dict)
    sent: dict[str, list[float]] = field(default_factory=dict)

    def run(self, stop: Any) -> None:
        due = time.monotonic()
        while not stop.is_set():
            wait = due - time.monotonic()
            if wait <= 0:
                self.step()
                # A step that comes too late is not made up for, as on a device.
                due = max(due + self.step_seconds, time.monotonic())
            elif isinstance(event := self.transport.receive(wait), Received):
                self.take(event)

    def take(self, event: Received) -> None:
        names = STAGE_WORK.match(event.topic)
        assert names is not None
        message = decode_frame(event.payload, STAGE_WORK.message)[0]
        match message:
            case Reserve():
                granted = Granted(
                    request_id=message.request_id,
                    attempt=message.attempt,
                    replica=names["replica"],
                    kind=message.kind,
                    state=GrantState.GRANTED,
                    free_tokens=1 << 20,
                    free_slots=1 << 10,
                )
                self.tell(message.gateway, granted)
            case Open():
                opened = Opened(
                    request_id=message.request_id,
                    attempt=message.attempt,
                    replica=names["replica"],
                    stage=0,
                )
                self.tell(message.gateway, opened)
                if message.request_id not in self.sent:
                    self.running[message.request_id] = message
                    self.sent[message.request_id] = []
            case Release():
                self.running.pop(message.request_id, None)
            case Resend():
                raise RuntimeError(f"the gateway missed a token of {message.request_id}")

    def step(self) -> None:
        now = time.monotonic()
        rows = []
        for request_id, opened in list(self.running.items()):
            index = len(self.sent[request_id])
            is_last = index == opened.max_tokens - 1
            token = FIRST_TOKEN + index % NUM_TOKENS
            rows.append(
                TokenRow(request_id, opened.attempt, index, token, "length" if is_last else None)
            )
            self.sent[request_id].append(now)
            if is_last:
                del self.running[request_id]
        for start in range(0, len(rows), self.group_rows):
            self.tell(GATEWAY, Tokens(rows=rows[start : start + self.group_rows]))

    def tell(self, gateway: str, event: Event) -> None:
        path = GATEWAY_EVENTS.path(SITE, gateway=gateway, sender=DEVICE)
        self.transport.publish(Publication(path, encode_frame(event), GATEWAY_EVENTS.qos))


def stand_in(
    addresses: dict[str, BrokerAddress],
    options: argparse.Namespace,
    core: int,
    stop: Any,
    results: Any,
) -> None:
    """Be planner and nodes, in a process of its own; gives all times of tokens at the end."""
    os.sched_setaffinity(0, {core})
    planner = MqttTransport(addresses[PLANNER_USER], PLANNER_USER)
    planner.subscribe([(MODEL.filter(SITE), MODEL.qos)])
    planner.connect()
    manifest = wait_for(planner, Received, timeout_seconds=PATIENCE_SECONDS)
    plan = the_plan(decode_control(manifest.payload, ModelManifest), options.clients + 1)
    node = MqttTransport(addresses[DEVICE], DEVICE)
    node.subscribe([(STAGE_WORK.filter(SITE, device=DEVICE), STAGE_WORK.qos)])
    node.connect()
    status = DeviceStatus(state=DeviceState.READY, session=1)
    publish(node, DEVICE_STATUS.path(SITE, device=DEVICE), encode_control(status))
    publish(planner, PLAN.path(SITE), encode_control(plan))
    device = StandIn(node, options.step, options.rows)
    device.run(stop)
    results.put(device.sent)
    node.close()
    planner.close()


def publish(transport: MqttTransport, path: str, payload: bytes) -> None:
    """Publish a retained value."""
    transport.publish(Publication(path, payload, PLAN.qos, retained=True))


# --- the gateway and its clients ----------------------------------------------------------


@contextlib.contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Run a Redis without persistence; give its URL."""
    port = free_port()
    command = [str(find_redis_server()), "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, cwd=folder)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def running_gateway(
    folder: Path, address: BrokerAddress, redis: str, core: int, clients: int
) -> Iterator[tuple[str, psutil.Process]]:
    """Run a gateway for the demo model on a core of its own; give its URL and process."""
    port = free_port()
    environ = {
        **os.environ,
        "E2LLM_BROKER": address.url,
        "E2LLM_SITE": SITE,
        "E2LLM_REDIS": redis,
        "E2LLM_GATEWAY_MODEL": str(DEMO_MODEL),
        "E2LLM_GATEWAY_STATE": str(folder / "gateway"),
        "E2LLM_GATEWAY_PORT": str(port),
        "E2LLM_GATEWAY_QUEUE_LIMIT": str(clients + 1),
    }
    with (folder / "gateway.log").open("wb") as log:
        child = subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, "-m", "gateway"],
            stderr=log,
            env=environ,
        )
    try:
        yield f"http://127.0.0.1:{port}", psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait()
        (last,) = (folder / "gateway.log").read_text().strip().splitlines()[-1:] or ("",)
        print(f"last line of the gateway's log: {last}")


@dataclass
class Watch:
    """What the gateway's process used, sampled twice a second."""

    process: psutil.Process
    before_bytes: int = 0
    peak_bytes: int = 0
    cpu_before: float = 0.0
    cpu_seconds: float = 0.0

    def begin(self) -> None:
        self.before_bytes = self.process.memory_info().rss
        self.cpu_before = self._cpu()

    async def run(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self.process.memory_info().rss)
            await asyncio.sleep(0.5)

    def end(self) -> None:
        self.cpu_seconds = self._cpu() - self.cpu_before

    def _cpu(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


async def ask_all(
    url: str, options: argparse.Namespace, watch: Watch
) -> tuple[list[Sample], float]:
    """Let all clients ask at once; return what they saw and when their clock began."""
    async with open_server(url, key=None, timeout_seconds=PATIENCE_SECONDS) as server:
        name = await until_ready(server)
        dialect = Dialect(model=name)
        body = {**dialect.body("What is 7 plus 5?", options.tokens), "return_token_ids": True}
        await server.count(dialect, "warm up")
        watch.begin()
        watching = asyncio.create_task(watch.run())
        start = time.perf_counter()
        began = time.monotonic()
        asked = [server.stream(dialect, body, 0.0, start) for _ in range(options.clients)]
        samples = await asyncio.gather(*asked)
        watch.end()
        watching.cancel()
    return list(samples), began


async def until_ready(server: Any) -> str:
    """Wait until the gateway has a plan; return the name of its model."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(Exception):
            name, _ = await server.model(None)
            await server.count(Dialect(model=name), "ready?")
            return str(name)
        if time.monotonic() > deadline:
            raise RuntimeError("the gateway did not become ready")
        await asyncio.sleep(0.1)


# --- what is said -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one run.

    Attributes:
        failed: Clients without a whole answer.
        overhead_p50_ms, overhead_p99_ms: Of a token, from the stand-in to the client.
        tokens_per_second: Streamed by all, from the first to the last token.
        tokens_per_core_second: Streamed per second of the gateway's processor time.
        memory_before_mib, memory_peak_mib: The gateway's resident memory.
    """

    clients: int
    tokens_each: int
    step_seconds: float
    rows_per_message: int
    failed: int
    errors: list[str]
    overhead_p50_ms: float
    overhead_p99_ms: float
    tokens_per_second: float
    gateway_cpu_seconds: float
    tokens_per_core_second: float
    memory_before_mib: float
    memory_peak_mib: float


def figures(
    options: argparse.Namespace,
    samples: list[Sample],
    began: float,
    sent: dict[str, list[float]],
    watch: Watch,
) -> Figures:
    """Match what was sent with what was seen."""
    overheads: list[float] = []
    moments: list[float] = []
    for sample in samples:
        had = sent.get(f"{sample.answer_id}-0", [])
        index = 0
        for at, count in zip(sample.times, sample.piece_tokens, strict=True):
            seen = began + at
            moments.append(seen)
            overheads += [seen - each for each in had[index : index + count]]
            index += count
    num_tokens = len(overheads)
    errors = sorted({sample.error for sample in samples if sample.error})
    return Figures(
        clients=options.clients,
        tokens_each=options.tokens,
        step_seconds=options.step,
        rows_per_message=options.rows,
        failed=sum(not sample.is_finished for sample in samples),
        errors=errors,
        overhead_p50_ms=1e3 * float(np.percentile(overheads, 50)),
        overhead_p99_ms=1e3 * float(np.percentile(overheads, 99)),
        tokens_per_second=num_tokens / (max(moments) - min(moments)),
        gateway_cpu_seconds=watch.cpu_seconds,
        tokens_per_core_second=num_tokens / watch.cpu_seconds,
        memory_before_mib=watch.before_bytes / 2**20,
        memory_peak_mib=watch.peak_bytes / 2**20,
    )


def run(options: argparse.Namespace) -> Figures:
    """Start everything, let the clients ask, stop everything."""
    cores = sorted(os.sched_getaffinity(0))
    gateway_core, other_core = cores[0], cores[-1]
    with (
        tempfile.TemporaryDirectory() as name,
        running_broker("mosquitto", Path(name), nodes=[DEVICE], gateways=[GATEWAY]) as broker,
        running_redis(Path(name)) as redis,
        running_gateway(
            Path(name), broker.address(GATEWAY), redis, gateway_core, options.clients
        ) as (url, process),
    ):
        users = {user: broker.address(user) for user in (PLANNER_USER, DEVICE)}
        stop, results = spawn.Event(), spawn.Queue()
        nodes = spawn.Process(
            target=stand_in, args=(users, options, other_core, stop, results), daemon=True
        )
        nodes.start()
        os.sched_setaffinity(0, {other_core})
        watch = Watch(process)
        try:
            samples, began = asyncio.run(ask_all(url, options, watch))
        finally:
            stop.set()
            with contextlib.suppress(queue.Empty):
                sent = results.get(timeout=10)
            nodes.join(10)
            os.sched_setaffinity(0, set(cores))
    return figures(options, samples, began, sent, watch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=200, help="of each answer")
    parser.add_argument("--step", type=float, default=0.1, help="seconds between two tokens")
    parser.add_argument("--rows", type=int, default=16, help="tokens in one message")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    about = context("uvicorn", "fastapi", "paho-mqtt")
    found = run(options)
    if options.json is not None:
        report = {"context": about, **asdict(found)}
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for key, value in asdict(found).items():
        print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")


if __name__ == "__main__":
    main()
