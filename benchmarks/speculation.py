"""What speculation brings on text that repeats itself, and what it costs on text that does not.

    python -m benchmarks.speculation FOLDER [--weights int8] [--hop-ms 10] [--slowdown 1]
        [--tokens 160] [--repetitions 5] [--json FILE]

Two fogs side by side, one with speculation and one without (`E2LLM_NODE_SPECULATION=0`): each two
`python -m nodes` of one thread on a core of its own, Mosquitto, and links of half a hop to it.
The model is split over both nodes, plans have the stage times that the nodes measured of
themselves. The fogs answer the same requests in turn, seconds apart; each case is the median of
the ratios of each repetition. Answers must be the same to the token. With a slowdown, devices are
emulated: a computation takes its calibrated time times that, so that other programs on the
machine disturb less. FOLDER is a checkpoint with a tokenizer, for example SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.here import context
from benchmarks.pinned_fog import DEVICES, Observer, PinnedFog, make_replica, say
from benchmarks.two_nodes import best_cut
from broker.control import ModelManifest
from broker.plan import LayerRange
from broker.work import Sampling
from gateway.manifest import prepare_manifest
from gateway.requests import Generation
from gateway.text import Tokenizer

TELEMETRY_SECONDS: Final = 0.5

LIST: Final = """Sensors of the greenhouse, by number:
- sensor 1: house A, bench 1, temperature in degrees Celsius, read every 10 seconds
- sensor 2: house A, bench 1, humidity in percent, read every 10 seconds
- sensor 3: house A, bench 2, temperature in degrees Celsius, read every 10 seconds
- sensor 4: house A, bench 2, humidity in percent, read every 10 seconds
- sensor 5: house A, bench 3, temperature in degrees Celsius, read every 10 seconds
- sensor 6: house A, bench 3, humidity in percent, read every 10 seconds
"""

CODE: Final = """The module as it was:
```python
def celsius_to_fahrenheit(value):
    return value * 9 / 5 + 32

def fahrenheit_to_celsius(value):
    return (value - 32) * 5 / 9

def celsius_to_kelvin(value):
    return value + 273.15

def metres_to_feet(value):
    return value / 0.3048

def feet_to_metres(value):
    return value * 0.3048

def litres_to_gallons(value):
    return value / 3.785411784

def gallons_to_litres(value):
    return value * 3.785411784

def kilograms_to_pounds(value):
    return value / 0.45359237

def pounds_to_kilograms(value):
    return value * 0.45359237

def bar_to_pascal(value):
    return value * 100000
```
The same module with types:
```python
def celsius_to_fahrenheit(value: float) -> float:
    return value * 9 / 5 + 32

def fahrenheit_to_celsius(value: float) -> float:
    return (value - 32) * 5 / 9

def celsius_to_kelvin(value: float) -> float:
    return value + 273.15

"""


@dataclass(frozen=True)
class Case:
    """Requests that run at once.

    Attributes:
        text: The prompt; None: tokens drawn at random, and an answer that is nearly as random.
    """

    name: str
    text: str | None
    num_requests: int = 1

    def generations(
        self, tokenizer: Tokenizer, vocabulary: int, num_tokens: int, run: str
    ) -> list[Generation]:
        """Return the requests; the same whatever the run is called."""
        found = []
        for index in range(self.num_requests):
            rng = random.Random(f"{self.name}-{index}")
            ids = tuple(rng.randrange(3, vocabulary) for _ in range(64))
            sampling = Sampling(temperature=2.0, seed=index + 1, ignore_eos=True)
            if self.text is not None:
                ids = tokenizer.encode(self.text, add_special_tokens=False)
                sampling = Sampling(ignore_eos=True)
            name = f"{self.name}-{run}-{index}"
            found.append(
                Generation(
                    request_id=name, prompt_ids=ids, max_tokens=num_tokens, sampling=sampling
                )
            )
        return found


CASES: Final = (
    Case("list", LIST),
    Case("code", CODE),
    Case("random", None),
    Case("random-8", None, 8),
)


@dataclass
class Row:
    """One case.

    Attributes:
        without, with_it: Tokens per second of all its requests together, by repetition.
        ratio: Median of the ratios.
        proposed, accepted: Ids that went round in one repetition, and those that came true.
    """

    case: str
    without: list[float] = field(default_factory=list)
    with_it: list[float] = field(default_factory=list)
    ratio: float = 0.0
    proposed: int = 0
    accepted: int = 0


class WideFog(PinnedFog):
    """Two nodes behind links, with room for the prompts."""

    context_tokens = 1024


class Side:
    """One of the two fogs.

    Args:
        settings: Of its nodes.
        speculation: As the setting of nodes; None: as it is by default.
    """

    def __init__(self, folder: Path, settings: dict[str, str], speculation: int | None) -> None:
        folder.mkdir()
        if speculation is not None:
            settings["E2LLM_NODE_SPECULATION"] = str(speculation)
        self.fog = WideFog(folder, DEVICES, settings)
        self._observer: Observer

    async def start(self, manifest: ModelManifest) -> None:
        """Start the nodes, and serve the model from both."""
        await self.fog.start()
        self._observer = Observer(self.fog)
        self.fog.engine.publish_model(manifest)
        costs = await self._observer.costs(manifest)
        num_layers = manifest.config["num_hidden_layers"]
        cut = best_cut(costs, num_layers)
        ranges = [LayerRange(0, cut), LayerRange(cut, num_layers)]
        await self.fog.serve(manifest, [make_replica(manifest, costs, ranges)])

    async def stop(self) -> None:
        """Stop the nodes."""
        self._observer.close()
        await self.fog.stop()

    async def answer(self, generations: Sequence[Generation]) -> tuple[float, list[list[int]]]:
        """Return tokens per second of all requests from their first tokens on, and the tokens."""

        async def one(generation: Generation) -> tuple[list[int], float, float]:
            tokens, moments = [], []
            async for token in self.fog.engine.generate(generation):
                tokens.append(token.token_id)
                moments.append(time.perf_counter())
            return tokens, moments[0], moments[-1]

        answers = await asyncio.gather(*(one(generation) for generation in generations))
        rate = sum((len(tokens) - 1) / (end - begin) for tokens, begin, end in answers)
        return rate, [tokens for tokens, _, _ in answers]

    async def tally(self) -> tuple[int, int]:
        """Return how many ids have gone round so far, and how many came true."""
        self._observer.telemetry.clear()
        await asyncio.sleep(2 * TELEMETRY_SECONDS)
        while len(self._observer.telemetry) < len(DEVICES):
            await asyncio.sleep(0.05)
            self._observer.read()
        said = self._observer.telemetry.values()
        return (
            sum(each.proposed_tokens or 0 for each in said),
            sum(each.accepted_tokens or 0 for each in said),
        )


async def run(options: argparse.Namespace, about: dict[str, Any], scratch: Path) -> list[Row]:
    manifest = prepare_manifest(
        options.folder,
        name=options.folder.name,
        weights=options.weights,
        kv_format="float32",
        cache=scratch / "checksums.json",
    ).manifest
    tokenizer = Tokenizer.from_folder(options.folder)
    vocabulary = manifest.config["vocab_size"]
    rows = {case.name: Row(case.name) for case in CASES}
    async with AsyncExitStack() as stack:
        settings = {
            # A hop is the link of the sender and then that of the receiver.
            "E2LLM_NODE_LINK_DELAY_SECONDS": repr(options.hop_ms / 2e3),
            "E2LLM_NODE_SLOWDOWN": repr(options.slowdown),
            "E2LLM_NODE_TELEMETRY_SECONDS": repr(TELEMETRY_SECONDS),
            # Both fogs have the times that one of them measured.
            "E2LLM_NODE_CACHE": str(scratch / "cache"),
        }
        sides = []
        for name, speculation in (("without", 0), ("with", None)):
            side = Side(scratch / name, dict(settings), speculation)
            say(f"{name}: the nodes measure themselves and load")
            await side.start(manifest)
            stack.push_async_callback(side.stop)
            sides.append(side)
        without, with_it = sides
        for repetition in range(options.repetitions):
            for case in CASES:
                row, run_name = rows[case.name], str(repetition)
                asked = case.generations(tokenizer, vocabulary, options.tokens, run_name)
                rate, expected = await without.answer(asked)
                before = await with_it.tally()
                speculated_rate, tokens = await with_it.answer(asked)
                after = await with_it.tally()
                if tokens != expected:
                    raise RuntimeError(f"{case.name}: speculation changed the answer")
                row.without.append(round(rate, 2))
                row.with_it.append(round(speculated_rate, 2))
                row.proposed, row.accepted = after[0] - before[0], after[1] - before[1]
                say(f"{run_name} {case.name}: {speculated_rate / rate:.3f}")
                if repetition == 0 and options.show and case.text is not None:
                    say(tokenizer.decode(tokens[0]))
            save(options, about, list(rows.values()))
    return list(rows.values())


def save(options: argparse.Namespace, about: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write what is known so far."""
    for row in rows:
        pairs = zip(row.with_it, row.without, strict=True)
        row.ratio = round(statistics.median(one / other for one, other in pairs), 3)
    if options.json is not None:
        report = {
            **about,
            "model": options.folder.name,
            "weights": options.weights,
            "hop_ms": options.hop_ms,
            "slowdown": options.slowdown,
            "tokens": options.tokens,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| text | tokens/s without | with | ratio | ids that went round | of them true |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.case} | {statistics.median(row.without):.1f} "
        f"| {statistics.median(row.with_it):.1f} | {row.ratio:.3f} | {row.proposed} "
        f"| {row.accepted} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--hop-ms", type=float, default=10.0)
    parser.add_argument("--slowdown", type=float, default=1.0, help="of both devices")
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--show", action="store_true", help="print the answers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    about = context("torch")
    with tempfile.TemporaryDirectory(prefix="e2llm-speculation-") as scratch:
        rows = asyncio.run(run(options, about, Path(scratch)))
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(rows))


if __name__ == "__main__":
    main()
