"""What two devices make of a model that one could hold: real nodes, Mosquitto, the bus between.

    python -m benchmarks.two_nodes [--shape qwen2.5-0.5b --shape tinyllama-1.1b]
        [--weights int8] [--repetitions 3] [--tokens 32] [--models DIR] [--json FILE]

Two `python -m nodes` of one thread, each on a core of its own, a gateway's engine in this
process, and plans by hand: `one` gives all layers to the first node, `two` splits them where
the planner's costs of the nodes' own profiles say. All stages stay loaded; requests go to the
replica that the active plan names, so both are measured in turn, seconds apart, in the same
processes. Rates are those of tokens as they reach the gateway while all requests decode. The
share of the bus is what a token takes longer than the nodes compute for it, by the medians
that their telemetry gives.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.here import context
from benchmarks.pinned_fog import DEVICES, WORKLOAD, Observer, PinnedFog, make_replica, say
from broker.grouping import best_grouping
from broker.plan import LayerRange, Replica
from broker.work import Sampling
from fog.bench import checkpoint_folder
from fog.shapes import shapes
from gateway.manifest import prepare_manifest
from gateway.requests import Generation
from planner.cost import DeviceCost

# A request's first tokens come while others are still in prefill.
WARM_UP_TOKENS: Final = 4

# In this order `two` rests for longer than the nodes' telemetry looks back before its lone
# request, whose share of the bus that telemetry tells.
CASES: Final = (
    ("two", 8),
    ("two", 16),
    ("one", 4),
    ("one", 8),
    ("one", 1),
    ("two", 1),
)


@dataclass(frozen=True)
class Result:
    """One shape. Ratios are medians of the ratios of each repetition.

    Attributes:
        split: Layers of each node.
        tokens_per_second: ``"<nodes> x <requests>"`` to the median.
        lone: Two nodes with one request against one node with one.
        sixteen: Two nodes with 16 requests against one node with 8.
        eight: Two nodes with 8 requests against one node with 8.
        eight_bound: T(8) / T(4), one node's times of a step: what two nodes could make of
            8 requests in two groups if the bus cost nothing.
        bus_share: Of a lone request's time per token in two nodes.
        bus_seconds: The same in seconds: two hops, the loop of both nodes, the broker.
        groups: Groups in flight with 8 and with 16 requests.
    """

    shape: str
    weights: str
    repetitions: int
    split: tuple[int, int]
    tokens_per_second: dict[str, float]
    lone: float
    sixteen: float
    eight: float
    eight_bound: float
    bus_share: float
    bus_seconds: float
    groups: tuple[int, int]


def best_cut(costs: Sequence[DeviceCost], num_layers: int) -> int:
    """Return the cut whose slower stage is the fastest, with eight rows."""
    first, second = (cost.decode[7] for cost in costs)
    return min(
        range(1, num_layers),
        key=lambda cut: max(first.stage_seconds(0, cut), second.stage_seconds(cut, num_layers)),
    )


class Pace(NamedTuple):
    """How fast tokens come.

    Attributes:
        tokens_per_second: Of all requests together.
        gap_seconds: Between two tokens of one request, a median as in the nodes' telemetry.
    """

    tokens_per_second: float
    gap_seconds: float


async def measure(
    fog: PinnedFog, name: str, num_requests: int, num_tokens: int, vocabulary: int
) -> Pace:
    """Return the pace while all requests decode."""
    rng = random.Random(name)

    async def moments(index: int) -> list[float]:
        generation = Generation(
            request_id=f"{name}-{index}",
            prompt_ids=tuple(rng.randrange(3, vocabulary) for _ in range(WORKLOAD.prompt_tokens)),
            # Prompts take steps of those that decode already.
            max_tokens=num_tokens + WARM_UP_TOKENS + num_requests,
            sampling=Sampling(ignore_eos=True),
        )
        return [time.perf_counter() async for _ in fog.engine.generate(generation)]

    streams = await asyncio.gather(*(moments(index) for index in range(num_requests)))
    begin = max(stream[WARM_UP_TOKENS - 1] for stream in streams)
    end = min(stream[-1] for stream in streams)
    inside = [[at for at in stream if begin <= at <= end] for stream in streams]
    return Pace(
        sum((len(each) - 1) / (each[-1] - each[0]) for each in inside),
        statistics.median(later - at for each in inside for at, later in pairwise(each)),
    )


async def run_shape(shape: str, options: argparse.Namespace, folder: Path) -> Result:
    checkpoint = checkpoint_folder(shape, options.models)
    manifest = prepare_manifest(
        checkpoint,
        name=shape,
        weights=options.weights,
        kv_format="float32",
        cache=options.models / "checksums.json",
    ).manifest
    num_layers = manifest.config["num_hidden_layers"]
    fog = PinnedFog(folder, DEVICES)
    await fog.start()
    observer = Observer(fog)
    try:
        fog.engine.publish_model(manifest)
        say(f"{shape}: the nodes measure themselves")
        costs = await observer.costs(manifest)
        cut = best_cut(costs, num_layers)
        replicas = {
            "one": make_replica(manifest, costs[:1], [LayerRange(0, num_layers)]),
            "two": make_replica(manifest, costs, [LayerRange(0, cut), LayerRange(cut, num_layers)]),
        }
        say(f"{shape}: loading {cut} + {num_layers - cut} layers, and all on the first node")
        await fog.serve(manifest, list(replicas.values()))
        rates: dict[tuple[str, int], list[float]] = {case: [] for case in CASES}
        buses = []
        for repetition in range(options.repetitions):
            for nodes, requests in CASES:
                await fog.route(manifest, [replicas[nodes]])
                name = f"{shape}-{nodes}-{requests}-{repetition}"
                pace = await measure(
                    fog, name, requests, options.tokens, manifest.config["vocab_size"]
                )
                rate = pace.tokens_per_second
                rates[nodes, requests].append(rate)
                say(f"{repetition + 1}/{options.repetitions} {nodes} x {requests}: {rate:.2f}/s")
            # The last case was the lone request of `two`.
            busy = await observer.compute_seconds(replicas["two"])
            buses.append((pace.gap_seconds - busy, 1 - busy / pace.gap_seconds))
        return result(shape, options, replicas["two"], rates, buses)
    finally:
        observer.close()
        await fog.stop()


def result(
    shape: str,
    options: argparse.Namespace,
    two: Replica,
    rates: dict[tuple[str, int], list[float]],
    buses: list[tuple[float, float]],
) -> Result:
    def ratio(above: tuple[str, int], below: tuple[str, int]) -> float:
        pairs = zip(rates[above], rates[below], strict=True)
        return statistics.median(one / other for one, other in pairs)

    seconds, shares = zip(*buses, strict=True)
    return Result(
        shape=shape,
        weights=options.weights,
        repetitions=options.repetitions,
        split=(len(two.stages[0].layers), len(two.stages[1].layers)),
        tokens_per_second={
            f"{nodes} x {requests}": round(statistics.median(found), 2)
            for (nodes, requests), found in sorted(rates.items())
        },
        lone=round(ratio(("two", 1), ("one", 1)), 3),
        sixteen=round(ratio(("two", 16), ("one", 8)), 3),
        eight=round(ratio(("two", 8), ("one", 8)), 3),
        # T(8) / T(4) is (8 / rate(8)) / (4 / rate(4)).
        eight_bound=round(2 * ratio(("one", 4), ("one", 8)), 3),
        bus_share=round(statistics.median(shares), 4),
        bus_seconds=round(statistics.median(seconds), 6),
        groups=(
            best_grouping(two.stages, 8).num_groups,
            best_grouping(two.stages, 16).num_groups,
        ),
    )


def table(results: Sequence[Result]) -> str:
    lines = [
        "| shape | layers | 1 request, two / one (aim 0.93) | 16 / 8 (aim 1.7) | 8 / 8 "
        "| T(8) / T(4) | 8 / 8 of it (aim 0.9) | bus per token | its share (aim 2 %) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {each.shape}, {each.weights} | {each.split[0]} + {each.split[1]} | {each.lone:.2f} "
        f"| {each.sixteen:.2f} | {each.eight:.2f} | {each.eight_bound:.2f} "
        f"| {each.eight / each.eight_bound:.2f} | {1e3 * each.bus_seconds:.2f} ms "
        f"| {100 * each.bus_share:.1f} % |"
        for each in results
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", action="append", choices=sorted(shapes()))
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="of each request, in the window")
    parser.add_argument("--models", type=Path, metavar="DIR", help="keep checkpoints here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    about, results = context(), []
    with tempfile.TemporaryDirectory() as scratch:
        options.models = options.models or Path(scratch) / "models"
        for shape in options.shape or ["qwen2.5-0.5b", "tinyllama-1.1b"]:
            folder = Path(scratch) / shape
            folder.mkdir()
            results.append(asyncio.run(run_shape(shape, options, folder)))
    if options.json is not None:
        report = {"context": about, "results": [asdict(each) for each in results]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(results))
    for each in results:
        print(f"{each.shape}: {each.groups} groups of 8 and 16; {each.tokens_per_second}")


if __name__ == "__main__":
    main()
