"""What a prompt's KV costs on its way to the replica that decodes, over a slow link.

    python -m benchmarks.kv_transfer [--shape tinyllama-1.1b] [--weights int8]
        [--link 12.5e6] [--prompt 512] [--repetitions 3] [--models DIR] [--json FILE]

Two `python -m nodes`, one that prefills and one that decodes, with links of a rate that they
emulate. The second token comes when all KV is there; its wait after the first one is what the
transfer adds to a request. Measured with the prompt in one chunk, where nothing can overlap,
and on the grid, where KV of a chunk travels while the next is computed; as KV is held, and in
whole numbers. For those the loss on the demo model follows: logits of tokens after a prompt
whose KV travelled in int8 against those after one whose KV stayed.
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
from pathlib import Path
from typing import Final

import msgspec
import torch

from benchmarks.here import context
from benchmarks.pinned_fog import DEVICES, Observer, PinnedFog, make_replica, say
from broker.architecture import kv_sent_bytes_per_token, parse_config
from broker.plan import LayerRange, Replica, Role
from broker.work import RequestKey, Sampling
from fog.bench import checkpoint_folder
from fog.model_choice import DEMO_MODEL, DEMO_QUESTION
from fog.shapes import shapes
from gateway.manifest import prepare_manifest
from gateway.requests import Generation
from gateway.template import ChatTemplate
from gateway.text import Tokenizer
from nodes.executor import StageExecutor
from nodes.folder import FolderTensors
from nodes.weights import LayerWeights

GRID: Final = 128
ANSWER_TOKENS: Final = 24
QUESTIONS: Final = (
    DEMO_QUESTION,
    "Is 19 more than 23?",
    "Which device is the fastest?",
    "What is 7 plus 5?",
    "What is 18 minus 9?",
    "What does the planner do?",
    "What is MQTT?",
    "How do I start the fog?",
)


@dataclass(frozen=True)
class Transfer:
    """One way of sending; seconds are medians.

    Attributes:
        chunk_tokens: Positions of a chunk of the prompt.
        link_seconds: What the bytes take on one link, computed.
        first_token_seconds: From the request to its first token.
        gap_seconds: From the first token to the second.
        later_gap_seconds: Between tokens after that.
    """

    kv_transfer: str
    chunk_tokens: int
    num_bytes: int
    link_seconds: float
    first_token_seconds: float
    gap_seconds: float
    later_gap_seconds: float


@dataclass(frozen=True)
class Loss:
    """What int8 on the way does to the demo model.

    Attributes:
        logit_error: Root mean square of the difference over that of the logits.
        top1_agreement: Share of positions whose most likely token is the same.
    """

    num_positions: int
    logit_error: float
    top1_agreement: float


async def transfers(options: argparse.Namespace, folder: Path) -> list[Transfer]:
    """Run the fog and return a row for each way of sending."""
    manifest = prepare_manifest(
        checkpoint_folder(options.shape, options.models),
        name=options.shape,
        weights=options.weights,
        kv_format="float32",
        cache=options.models / "checksums.json",
    ).manifest
    config = parse_config(manifest.config)
    rate = {"E2LLM_NODE_LINK_BYTES_PER_SECOND": str(options.link)}
    fog = PinnedFog(folder, DEVICES, rate)
    fog.context_tokens = options.prompt + GRID
    await fog.start()
    observer = Observer(fog)
    found = []
    try:
        fog.engine.publish_model(manifest)
        say("the nodes measure themselves")
        costs = await observer.costs(manifest)
        replicas = [
            _holder(make_replica(manifest, [cost], [LayerRange(0, config.num_layers)]), role)
            for cost, role in zip(costs, (Role.PREFILL, Role.DECODE), strict=True)
        ]
        for transfer, chunk in (("exact", options.prompt), ("exact", GRID), ("int8", GRID)):
            fog.chunk_tokens = chunk
            sent = msgspec.structs.replace(manifest, kv_transfer=transfer)
            await fog.serve(sent, replicas)
            streams = []
            for repetition in range(options.repetitions + 1):
                name = f"{transfer}-{chunk}-{repetition}"
                streams.append(await _moments(fog, name, options.prompt, config.vocab_size))
                say(f"{name}: second token {streams[-1][2] - streams[-1][1]:.2f} s after the first")
            position = kv_sent_bytes_per_token(config, "float32", transfer, config.num_layers)
            found.append(
                _row(transfer, chunk, options.prompt * position, options.link, streams[1:])
            )
    finally:
        observer.close()
        await fog.stop()
    return found


def _holder(replica: Replica, role: Role) -> Replica:
    tokens = 4 * replica.kv_tokens
    return msgspec.structs.replace(replica, role=role, kv_tokens=tokens)


async def _moments(fog: PinnedFog, name: str, num_tokens: int, vocabulary: int) -> list[float]:
    """Return when a request was made, and when its tokens came."""
    rng = random.Random(name)
    generation = Generation(
        request_id=name,
        prompt_ids=tuple(rng.randrange(3, vocabulary) for _ in range(num_tokens)),
        max_tokens=8,
        sampling=Sampling(ignore_eos=True),
    )
    began = time.perf_counter()
    return [began, *[time.perf_counter() async for _ in fog.engine.generate(generation)]]


def _row(
    transfer: str, chunk: int, num_bytes: int, rate: float, streams: Sequence[Sequence[float]]
) -> Transfer:
    def median(first: int, last: int) -> float:
        return round(statistics.median(stream[last] - stream[first] for stream in streams), 3)

    return Transfer(
        kv_transfer=transfer,
        chunk_tokens=chunk,
        num_bytes=num_bytes,
        link_seconds=round(num_bytes / rate, 3),
        first_token_seconds=median(0, 1),
        gap_seconds=median(1, 2),
        later_gap_seconds=round(median(2, 8) / 6, 3),
    )


@torch.inference_mode()
def loss() -> Loss:
    """Return what int8 on the way does to answers of the demo model."""
    config = parse_config(json.loads((DEMO_MODEL / "config.json").read_bytes()))
    weights = LayerWeights(config, FolderTensors(DEMO_MODEL), "float32")
    weights.add_embedding()
    weights.add_head()
    for layer in range(config.num_layers):
        weights.add(layer)
    layers = LayerRange(0, config.num_layers)
    stayed, moved = (
        StageExecutor(
            config,
            layers,
            weights,
            embedding=True,
            head=True,
            kv_tokens=1 << 14,
            chunk_tokens=GRID,
            kv_transfer="int8",
        )
        for _ in range(2)
    )
    template, tokenizer = ChatTemplate.from_folder(DEMO_MODEL), Tokenizer.from_folder(DEMO_MODEL)
    assert template is not None, "the demo model has a chat template"
    pairs = []
    for number, question in enumerate(QUESTIONS):
        key = RequestKey(f"question-{number}", 0)
        text = template.render([{"role": "user", "content": question}])
        ids = tokenizer.encode(text, add_special_tokens=False)
        for executor in (stayed, moved):
            executor.open(key, len(ids) + ANSWER_TOKENS)
        logits = stayed.logits(stayed.prefill(key, stayed.embed(ids), 0)[-1:])
        meta, data = stayed.read_kv(key, layers, 0, len(ids))
        moved.write_kv(key, layers, 0, data, meta)
        moved.set_length(key, len(ids))
        for _ in range(ANSWER_TOKENS):
            token = [int(logits.argmax())]
            logits = stayed.logits(stayed.decode([key], stayed.embed(token)))
            pairs.append((logits, moved.logits(moved.decode([key], moved.embed(token)))))
    exact, packed = (torch.cat(side) for side in zip(*pairs, strict=True))
    same = exact.argmax(-1) == packed.argmax(-1)
    return Loss(
        num_positions=len(exact),
        logit_error=round(float((packed - exact).norm() / exact.norm()), 5),
        top1_agreement=round(float(same.float().mean()), 4),
    )


def table(rows: Sequence[Transfer]) -> str:
    lines = [
        "| KV travels | chunk | MB | on the link | first token after "
        "| second token after the first | later tokens |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.kv_transfer} | {row.chunk_tokens} | {row.num_bytes / 1e6:.1f} "
        f"| {row.link_seconds:.2f} s | {row.first_token_seconds:.2f} s | {row.gap_seconds:.2f} s "
        f"| {1e3 * row.later_gap_seconds:.0f} ms |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="tinyllama-1.1b", choices=sorted(shapes()))
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--link", type=float, default=12.5e6, help="bytes per second")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--models", type=Path, metavar="DIR", help="keep checkpoints here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    about, lost = context(), loss()
    with tempfile.TemporaryDirectory() as scratch:
        options.models = options.models or Path(scratch) / "models"
        folder = Path(scratch) / "fog"
        folder.mkdir()
        rows = asyncio.run(transfers(options, folder))
    if options.json is not None:
        report = {"context": about, "rows": [asdict(row) for row in rows], "loss": asdict(lost)}
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{options.shape}, {options.weights}, {options.prompt} tokens, {options.link:g} bytes/s")
    print(table(rows))
    print(
        f"int8 on the way, demo model, {lost.num_positions} positions: logits off by "
        f"{100 * lost.logit_error:.2f} %, same first choice at {100 * lost.top1_agreement:.1f} %"
    )


if __name__ == "__main__":
    main()
