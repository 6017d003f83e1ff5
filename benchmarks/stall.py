"""How long running streams wait while a long prompt is taken in.

    python -m benchmarks.stall FOLDER [--weights int8] [--threads 1] [--streams 8] [--prompt 2000]

One device that does both, without a bus: streams run, then a long prompt arrives. Prints the
streams' time per token before, the longest gap between two tokens of a stream meanwhile, and
their ratio, which travels from machine to machine. FOLDER is a checkpoint, for example of
`e2llm make-model`.
"""

import argparse
import json
import platform
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch

from broker.plan import Role
from nodes.bench.ours import FolderTensors, token_ids
from tests.support.pipeline import SmallFog, make_replica

TOKENS_BEFORE = 20


class ClockedFog(SmallFog):
    """Computes by the real clock; messages and timers go by steps."""

    def _clock(self) -> float:
        return time.perf_counter()


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    config = json.loads((arguments.folder / "config.json").read_text())
    num_layers, vocabulary = config["num_hidden_layers"], config["vocab_size"]
    replica = make_replica(
        (num_layers,), ("device",), Role.BOTH, slots=arguments.streams + 1, kv_tokens=1 << 16
    )
    fog = ClockedFog(
        config,
        FolderTensors(arguments.folder),
        [replica],
        chunk_tokens=128,
        weights=arguments.weights,
    )
    streams = [f"stream-{number}" for number in range(arguments.streams)]
    moments: list[float] = []  # of the first stream's tokens; all streams share their steps

    def run_until(name: str, num_tokens: int) -> None:
        while len(fog.answers[name].tokens) < num_tokens:
            fog.step()
            moments.extend(
                [time.perf_counter()] * (len(fog.answers[streams[0]].tokens) - len(moments))
            )

    for stream in streams:
        fog.ask(stream, token_ids(64, vocabulary), replica, replica, max_tokens=4000)
    for stream in streams:
        run_until(stream, 1)
    run_until(streams[0], len(moments) + TOKENS_BEFORE)
    tpot = statistics.median(gaps(moments[-TOKENS_BEFORE:]))
    began = time.perf_counter()
    fog.ask("long", token_ids(arguments.prompt, vocabulary), replica, replica, max_tokens=2)
    run_until("long", 1)
    took = time.perf_counter() - began
    meanwhile = gaps([moment for moment in moments if moment >= began])
    print(
        f"{platform.processor() or platform.machine()}, {arguments.folder.name}, "
        f"{arguments.weights}, {arguments.threads} thread(s), {arguments.streams} streams"
    )
    print(f"time per token before: {1e3 * tpot:.0f} ms")
    print(f"prompt of {arguments.prompt} tokens: {took:.1f} s to its first token")
    print(
        f"gaps meanwhile: median {1e3 * statistics.median(meanwhile):.0f} ms, "
        f"longest {1e3 * max(meanwhile):.0f} ms, {max(meanwhile) / tpot:.1f} times before"
    )


def gaps(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(moments)]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=2000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
