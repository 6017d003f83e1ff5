"""What a node weighs while it serves half of a model, and how soon it has loaded it.

    python -m benchmarks.node_memory FOLDER [--weights int8 float32] [--kv-format float32]
        [--starts 3] [--requests 4] [--prompt 256] [--json FILE]

Two node processes of one thread on Mosquitto hold half of the checkpoint in FOLDER each (for
example of `e2llm make-model --like tinyllama-1.1b`). Both start once, which leaves folder and
caches warm; then each starts again, and is timed until it reports `loaded`. Then requests
run, and memory is read while they hold their KV.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.here import context
from broker.architecture import (
    KV_FORMATS,
    WEIGHT_FORMATS,
    kv_bytes_per_token,
    parse_config,
    stage_bytes,
    stage_tensor_names,
)
from broker.control import ModelManifest
from broker.placement import kv_reserved_tokens
from broker.plan import Role, Stage
from broker.work import Sampling
from gateway.manifest import prepare_manifest
from gateway.requests import Generation
from tests.support.pipeline import make_replica
from tests.support.real_fog import RealFog

DEVICES: Final = ("first", "second")
ANSWER_TOKENS: Final = 16
MIB: Final = 1 << 20
AIM_BYTES: Final = 320_000_000
SAMPLE_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Start:
    """One start of a node until it reported `loaded`, with the bytes that it then held."""

    seconds: float
    cpu_seconds: float
    peak: int


@dataclass(frozen=True)
class Row:
    """Figures of one half in one weight format.

    Attributes:
        layers: Of the half; the first also has the embedding, the second the head.
        load_seconds: Start of the process to `loaded`, median; ``load_cpu_seconds`` likewise,
            of all its threads.
        tensor_mib: The largest tensor of the half, as the checkpoint stores it.
        idle_mib: Resident set of a node that knows no model.
        peak_mib: Largest resident set until `loaded`.
        over_share_mib: ``peak_mib`` beyond idle, weights and that tensor.
        serving_mib: Largest resident set while requests run; ``serving_pss_mib`` likewise.
        else_mib: ``serving_mib`` beyond weights and KV (aim: at most 320 MB, 305 MiB).
    """

    weights: str
    kv_format: str
    layers: tuple[int, int]
    load_seconds: float
    load_cpu_seconds: float
    weights_mib: float
    tensor_mib: float
    kv_mib: float
    idle_mib: float
    peak_mib: float
    over_share_mib: float
    serving_mib: float
    serving_pss_mib: float
    else_mib: float


class HalvedFog(RealFog):
    """Two nodes with the product's chunk grid."""

    chunk_tokens = 128
    context_tokens = 2048

    async def until_ready(self) -> None:
        """Wait until the gateway may use the plan."""
        await self._until(lambda: self._is_active(self.version), "the gateway is ready")

    async def idle_bytes(self, device: str) -> int:
        """Return what a node weighs that has just connected."""
        await self._until(lambda: "ready, session" in self.log_of(device), f"{device} is ready")
        return resident_bytes(self.nodes[device].pid)

    async def restart(self, device: str) -> Start:
        """Start a node again, and wait until it has loaded."""
        self.nodes[device].terminate()
        await asyncio.to_thread(self.nodes[device].wait)
        self.loaded.pop(device, None)
        began = time.perf_counter()
        self.start_node(device)
        await self._until_loaded({device})
        seconds, pid = time.perf_counter() - began, self.nodes[device].pid
        cpu = psutil.Process(pid).cpu_times()
        return Start(seconds, cpu.user + cpu.system, peak_bytes(pid))


class Watch:
    """The largest resident and proportional set of a process while the block runs."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.rss = self.pss = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            now = self._process.memory_full_info()
            self.rss, self.pss = max(self.rss, now.rss), max(self.pss, now.pss)


def main() -> None:
    arguments = read_arguments()
    run_context = context("torch")  # the load before, not that of the run
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="e2llm-memory-") as folder:
        for weights in arguments.weights:
            scratch = Path(folder) / weights
            scratch.mkdir()
            rows += asyncio.run(measure(arguments, weights, scratch))
    if arguments.json:
        report = {
            **run_context,
            "model": arguments.folder.name,
            "requests": arguments.requests,
            "prompt_tokens": arguments.prompt,
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(f"{run_context['commit']}, {run_context['cores']} cores, load {run_context['load']}")
    print(markdown(arguments, rows))


async def measure(arguments: argparse.Namespace, weights: str, scratch: Path) -> list[Row]:
    say(f"{weights}: checksums")
    manifest = prepare_manifest(
        arguments.folder,
        name=arguments.folder.name,
        weights=weights,
        kv_format=arguments.kv_format,
        cache=scratch.parent / "checksums.json",
    ).manifest
    num_layers = parse_config(manifest.config).num_layers
    replica = make_replica(
        (num_layers // 2, num_layers),
        DEVICES,
        Role.BOTH,
        slots=arguments.requests,
        kv_tokens=1 << 14,
    )
    fog = HalvedFog(scratch, DEVICES)
    await fog.start()
    try:
        idle = {device: await fog.idle_bytes(device) for device in DEVICES}
        say(f"{weights}: first start")
        await fog.serve(manifest, [replica])
        starts: dict[str, list[Start]] = {device: [] for device in DEVICES}
        for device in DEVICES * arguments.starts:
            say(f"{weights}: warm start {len(starts[device]) + 1} of the {device} half")
            starts[device].append(await fog.restart(device))
        await fog.until_ready()
        say(f"{weights}: {arguments.requests} requests of {arguments.prompt} tokens")
        requests = generations(arguments, manifest.config["vocab_size"])
        watches = {device: Watch(fog.nodes[device].pid) for device in DEVICES}
        with watches["first"], watches["second"]:
            await asyncio.gather(*map(fog.answer, requests))
    finally:
        await fog.stop()
    positions = sum(kv_reserved_tokens(len(r.prompt_ids) + r.max_tokens) for r in requests)
    return [
        row_of(manifest, stage, idle[stage.device], starts[stage.device], watch, positions)
        for stage, watch in zip(replica.stages, watches.values(), strict=True)
    ]


def row_of(
    manifest: ModelManifest,
    stage: Stage,
    idle: int,
    starts: Sequence[Start],
    watch: Watch,
    kv_positions: int,
) -> Row:
    config = parse_config(manifest.config)
    layers = range(stage.layers.start, stage.layers.end)
    names = stage_tensor_names(config, stage.layers, stage.embedding, stage.head)
    tensor = max(manifest.tensors[name].num_bytes for name in names)
    held = stage_bytes(config, manifest.weights, layers, embedding=stage.embedding, head=stage.head)
    kv = kv_positions * kv_bytes_per_token(config, manifest.kv_format, len(layers))
    peak = max(start.peak for start in starts)
    return Row(
        weights=manifest.weights,
        kv_format=manifest.kv_format,
        layers=(stage.layers.start, stage.layers.end),
        load_seconds=statistics.median(start.seconds for start in starts),
        load_cpu_seconds=statistics.median(start.cpu_seconds for start in starts),
        weights_mib=held / MIB,
        tensor_mib=tensor / MIB,
        kv_mib=kv / MIB,
        idle_mib=idle / MIB,
        peak_mib=peak / MIB,
        over_share_mib=(peak - idle - held - tensor) / MIB,
        serving_mib=watch.rss / MIB,
        serving_pss_mib=watch.pss / MIB,
        else_mib=(watch.rss - held - kv) / MIB,
    )


def generations(arguments: argparse.Namespace, vocabulary: int) -> list[Generation]:
    """Return the requests: greedy, of random prompts, that do not end early."""
    rng = random.Random(0)
    return [
        Generation(
            request_id=f"request-{number}",
            prompt_ids=tuple(rng.randrange(3, vocabulary) for _ in range(arguments.prompt)),
            max_tokens=ANSWER_TOKENS,
            sampling=Sampling(ignore_eos=True),
        )
        for number in range(arguments.requests)
    ]


def resident_bytes(pid: int) -> int:
    resident: int = psutil.Process(pid).memory_info().rss
    return resident


def peak_bytes(pid: int) -> int:
    """Return the largest resident set that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def markdown(arguments: argparse.Namespace, rows: Sequence[Row]) -> str:
    lines = [
        f"{arguments.folder.name}, half of it at one node of one thread; "
        f"{arguments.requests} requests of {arguments.prompt} + {ANSWER_TOKENS} positions, "
        f"KV in {arguments.kv_format}; MiB",
        "",
        "| format | layers | start to loaded, of it processor | idle | weights | largest tensor "
        "| peak while loading | beyond idle, weights, tensor | KV | serving, RSS / PSS "
        f"| beyond weights and KV (aim: {AIM_BYTES / MIB:.0f}) |",
        "| --- " * 11 + "|",
    ]
    for row in rows:
        lines.append(
            f"| {row.weights} | {row.layers[0]} to {row.layers[1]} "
            f"| {row.load_seconds:.1f} s, {row.load_cpu_seconds:.1f} s | {row.idle_mib:.0f} "
            f"| {row.weights_mib:.0f} | {row.tensor_mib:.0f} | {row.peak_mib:.0f} "
            f"| {row.over_share_mib:.0f} | {row.kv_mib:.0f} "
            f"| {row.serving_mib:.0f} / {row.serving_pss_mib:.0f} | {row.else_mib:.0f} |"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", nargs="+", default=["int8", "float32"], choices=WEIGHT_FORMATS)
    parser.add_argument("--kv-format", default="float32", choices=KV_FORMATS)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
