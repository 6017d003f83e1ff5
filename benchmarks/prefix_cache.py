"""How much sooner a chat's second turn begins, since its first one's KV is still there.

    python -m benchmarks.prefix_cache FOLDER [--weights int8] [--prompt 1500] [--chats 3]
        [--json FILE]

Node processes of one thread on Mosquitto and a gateway's engine in this process: one node for
both phases, then one that prefills and one that decodes. Each chat has two turns; the second
prompt is the first one, its answer and a question. For comparison a prompt of the same length
that nobody has asked before follows the last chat. Prints the times to the first token; their
ratio, within one run, travels from machine to machine. FOLDER is a checkpoint, for example of
`e2llm make-model`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.here import context
from broker.control import ModelManifest
from broker.plan import Replica, Role
from broker.work import Sampling
from gateway.manifest import prepare_manifest
from gateway.requests import Generation
from tests.support.pipeline import make_replica
from tests.support.real_fog import RealFog

DEVICES: Final = ("one", "two")
ANSWER_TOKENS: Final = 32
QUESTION_TOKENS: Final = 32
KV_TOKENS: Final = 1 << 14


@dataclass(frozen=True)
class Row:
    """One way to place the model; seconds are medians over the chats.

    Attributes:
        first_seconds: To the first token of the first turn.
        second_seconds: Of the second turn.
        stranger_seconds: Of one prompt of the second turn's length, with nothing kept of it.
        second_tokens: Of its prompt; ``cached_tokens`` of them were not computed.
        ratio: ``second_seconds`` to ``first_seconds`` (aim: at most 0.33).
    """

    placement: str
    first_seconds: float
    second_seconds: float
    stranger_seconds: float
    second_tokens: int
    cached_tokens: int
    ratio: float


class LongFog(RealFog):
    """Nodes that have room for long prompts."""

    chunk_tokens = 128
    context_tokens = 8192
    patience_seconds = 300.0


@dataclass(frozen=True)
class Answered:
    """An answer, the time to its first token, and what of the prompt was not computed."""

    token_ids: list[int]
    first_seconds: float
    cached_tokens: int


async def ask(fog: LongFog, name: str, prompt: Sequence[int]) -> Answered:
    generation = Generation(
        request_id=name,
        prompt_ids=tuple(prompt),
        max_tokens=ANSWER_TOKENS,
        sampling=Sampling(ignore_eos=True),
    )
    began, first, cached, ids = time.perf_counter(), 0.0, 0, []
    async for token in fog.engine.generate(generation):
        first = first or time.perf_counter() - began
        cached += token.cached_tokens
        ids.append(token.token_id)
    return Answered(ids, first, cached)


async def measure(
    fog: LongFog, placement: str, options: argparse.Namespace, vocabulary: int
) -> Row:
    rng = random.Random(placement)

    def said(length: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(length)]

    firsts, seconds = [], []
    prompt: list[int] = []
    for number in range(options.chats + 1):  # One more, to warm up.
        name = f"{placement}, chat {number}"
        prompt = said(options.prompt)
        firsts.append(await ask(fog, f"{name}, first", prompt))
        prompt += [*firsts[-1].token_ids, *said(QUESTION_TOKENS)]
        seconds.append(await ask(fog, f"{name}, second", prompt))
        print(
            f"{name}: {firsts[-1].first_seconds:.2f} s, {seconds[-1].first_seconds:.2f} s with "
            f"{seconds[-1].cached_tokens} positions kept",
            file=sys.stderr,
            flush=True,
        )
    stranger = await ask(fog, f"{placement}, stranger", said(len(prompt)))

    def median(found: Sequence[Answered]) -> float:
        return statistics.median(each.first_seconds for each in found[1:])

    return Row(
        placement=placement,
        first_seconds=median(firsts),
        second_seconds=median(seconds),
        stranger_seconds=stranger.first_seconds,
        second_tokens=len(prompt),
        cached_tokens=min(each.cached_tokens for each in seconds),
        ratio=median(seconds) / median(firsts),
    )


def placements(num_layers: int) -> dict[str, list[Replica]]:
    """Return what is measured."""
    one, two = (
        make_replica((num_layers,), (device,), role, kv_tokens=KV_TOKENS)
        for device, role in zip(DEVICES, (Role.PREFILL, Role.DECODE), strict=True)
    )
    both = make_replica((num_layers,), DEVICES[:1], Role.BOTH, kv_tokens=KV_TOKENS)
    return {"one node for both": [both], "a node for each": [one, two]}


async def run(options: argparse.Namespace, manifest: ModelManifest, folder: Path) -> list[Row]:
    num_layers, vocabulary = (manifest.config[key] for key in ("num_hidden_layers", "vocab_size"))
    fog = LongFog(folder, DEVICES)
    await fog.start()
    try:
        rows = []
        for placement, replicas in placements(num_layers).items():
            await fog.serve(manifest, replicas)
            rows.append(await measure(fog, placement, options, vocabulary))
        return rows
    finally:
        await fog.stop()


def main() -> None:
    options = read_arguments()
    run_context = context("torch")  # the load before, not that of the run
    with tempfile.TemporaryDirectory(prefix="e2llm-prefix-") as scratch:
        folder = Path(scratch)
        manifest = prepare_manifest(
            options.folder,
            name=options.folder.name,
            weights=options.weights,
            kv_format="float32",
            cache=folder / "checksums.json",
        ).manifest
        rows = asyncio.run(run(options, manifest, folder))
    if options.json:
        report = {
            **run_context,
            "model": options.folder.name,
            "weights": options.weights,
            "prompt_tokens": options.prompt,
            "chats": options.chats,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(
        f"{options.folder.name} in {options.weights} on {run_context['machine']}, "
        f"{run_context['cores']} cores, load {run_context['load']}, at {run_context['commit']}; "
        f"{options.chats} chats of a first prompt of {options.prompt} tokens\n\n"
        "| placement | first turn | second turn | kept | without | second to first |\n"
        + "| --- " * 6
        + "|"
    )
    for row in rows:
        print(
            f"| {row.placement} | {row.first_seconds:.2f} s | {row.second_seconds:.2f} s "
            f"| {row.cached_tokens} of {row.second_tokens} | {row.stranger_seconds:.2f} s "
            f"| {row.ratio:.2f} |"
        )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--prompt", type=int, default=1500)
    parser.add_argument("--chats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
