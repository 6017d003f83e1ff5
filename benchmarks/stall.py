"""How long running streams wait while a long prompt is taken in.

    python -m benchmarks.stall FOLDER [--weights int8 float32] [--threads 1] [--streams 8]
        [--prompt 2000] [--json FILE]

One node process that does both, on Mosquitto, and a gateway's engine in this process: streams
run, then a long prompt arrives. Prints the streams' time per token before, the longest gap
between two tokens of any of them meanwhile, as the gateway sees them, and their ratio, which
travels from machine to machine. FOLDER is a checkpoint, for example of `e2llm make-model`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from benchmarks.here import context
from broker.plan import Role
from broker.work import Sampling
from gateway.manifest import prepare_manifest
from gateway.requests import Generation
from tests.support.pipeline import make_replica
from tests.support.real_fog import RealFog

DEVICE: Final = "device"
STREAM_TOKENS: Final = 64
# The first tokens come while other streams are still in prefill.
WARM_UP_TOKENS: Final = 4
TOKENS_BEFORE: Final = 24


@dataclass(frozen=True)
class Row:
    """One weight format.

    Attributes:
        tpot_seconds: Median gap of the streams' tokens before the prompt.
        prompt_seconds: The prompt's way to its first token.
        median_gap_seconds: Of the streams meanwhile; ``longest_gap_seconds`` likewise.
        ratio: ``longest_gap_seconds`` to ``tpot_seconds`` (aim: under 3).
    """

    weights: str
    tpot_seconds: float
    prompt_seconds: float
    median_gap_seconds: float
    longest_gap_seconds: float
    ratio: float


class LongFog(RealFog):
    """One node that has room for the long prompt."""

    chunk_tokens = 128
    context_tokens = 8192
    threads = 1

    def start_node(self, device: str) -> None:
        """Start the node with the threads that are asked for."""
        os.environ["E2LLM_NODE_THREADS"] = str(self.threads)
        super().start_node(device)


class Stream:
    """One answer, and the moments of its tokens."""

    def __init__(self, fog: RealFog, name: str, prompt: Sequence[int], max_tokens: int) -> None:
        self.moments: list[float] = []
        self._generation = Generation(
            request_id=name,
            prompt_ids=tuple(prompt),
            max_tokens=max_tokens,
            sampling=Sampling(ignore_eos=True),
        )
        self.task = asyncio.create_task(self._run(fog))

    async def _run(self, fog: RealFog) -> None:
        async for _ in fog.engine.generate(self._generation):
            self.moments.append(time.perf_counter())

    async def until(self, num_tokens: int) -> None:
        """Wait for so many tokens."""
        while len(self.moments) < num_tokens:
            if self.task.done():
                self.task.result()
                raise RuntimeError(f"{self._generation.request_id} ended early")
            await asyncio.sleep(0.002)

    def gaps(self, start: float, end: float) -> list[float]:
        """Return the gaps that overlap a time."""
        return [b - a for a, b in pairwise(self.moments) if b > start and a < end]


async def measure(arguments: argparse.Namespace, weights: str, scratch: Path) -> Row:
    print(f"{weights}: loading", file=sys.stderr, flush=True)
    manifest = prepare_manifest(
        arguments.folder,
        name=arguments.folder.name,
        weights=weights,
        kv_format="float32",
        cache=scratch / "checksums.json",
    ).manifest
    num_layers, vocabulary = (manifest.config[key] for key in ("num_hidden_layers", "vocab_size"))
    rng = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(length)]

    replica = make_replica(
        (num_layers,), (DEVICE,), Role.BOTH, slots=arguments.streams + 1, kv_tokens=1 << 15
    )
    fog = LongFog(scratch, (DEVICE,))
    fog.threads = arguments.threads
    await fog.start()
    try:
        await fog.serve(manifest, [replica])
        streams = [
            Stream(fog, f"stream-{number}", prompt(STREAM_TOKENS), max_tokens=2000)
            for number in range(arguments.streams)
        ]
        await asyncio.gather(*(stream.until(WARM_UP_TOKENS) for stream in streams))
        calm = time.perf_counter()
        await streams[0].until(len(streams[0].moments) + TOKENS_BEFORE)
        began = time.perf_counter()
        print(f"{weights}: the prompt arrives", file=sys.stderr, flush=True)
        long = Stream(fog, "long", prompt(arguments.prompt), max_tokens=2)
        await long.until(1)
        ended = long.moments[0]
        await streams[0].until(len(streams[0].moments) + 1)
        tasks = [stream.task for stream in (*streams, long)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await fog.stop()
    tpot = statistics.median(gap for stream in streams for gap in stream.gaps(calm, began))
    meanwhile = [gap for stream in streams for gap in stream.gaps(began, ended)]
    return Row(
        weights=weights,
        tpot_seconds=tpot,
        prompt_seconds=ended - began,
        median_gap_seconds=statistics.median(meanwhile),
        longest_gap_seconds=max(meanwhile),
        ratio=max(meanwhile) / tpot,
    )


def main() -> None:
    arguments = read_arguments()
    run_context = context("torch")  # the load before, not that of the run
    rows = []
    for weights in arguments.weights:
        with tempfile.TemporaryDirectory(prefix="e2llm-stall-") as scratch:
            rows.append(asyncio.run(measure(arguments, weights, Path(scratch))))
    if arguments.json:
        report = {
            **run_context,
            "model": arguments.folder.name,
            "threads": arguments.threads,
            "streams": arguments.streams,
            "prompt_tokens": arguments.prompt,
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(
        f"{arguments.folder.name} on {run_context['machine']}, {run_context['cores']} cores, load "
        f"{run_context['load']}, at {run_context['commit']}; {arguments.threads} thread(s), "
        f"{arguments.streams} streams, a prompt of {arguments.prompt} tokens\n\n"
        "| weights | time per token before | prompt to first token | gaps meanwhile: median "
        "| longest | longest to before |\n" + "| --- " * 6 + "|"
    )
    for row in rows:
        print(
            f"| {row.weights} | {1e3 * row.tpot_seconds:.0f} ms | {row.prompt_seconds:.1f} s "
            f"| {1e3 * row.median_gap_seconds:.0f} ms | {1e3 * row.longest_gap_seconds:.0f} ms "
            f"| {row.ratio:.1f} |"
        )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", nargs="+", default=["int8", "float32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
