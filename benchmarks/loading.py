"""Where the bytes of a model come from while a fog of separate machines loads it.

    python -m benchmarks.loading FOLDER [--weights bfloat16] [--json FILE]

Five `python -m nodes` on Mosquitto that share no folder and no cache; the gateway's own weights
server, whose bytes are counted; a checkpoint, as of `e2llm make-model --like tinyllama-1.1b`, or
with a tied head `qwen2.5-0.5b`, of which both ends need the embedding. Two nodes load a replica;
two more load the same layers; then a fifth one does, and while it reads, both nodes that have its
layers are killed.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.here import context
from broker.architecture import parse_config, stage_tensor_names
from broker.control import ModelManifest
from broker.plan import Replica, Role, Stage
from gateway.server import HttpServer, listen
from gateway.weights import UrlSigner, with_urls
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.pipeline import make_replica
from tests.support.real_fog import RealFog

DEVICES: Final = ("first", "second", "third", "fourth", "fifth")
MIB: Final = 1 << 20
KILL_AT_SHARE: Final = 0.1


@dataclass(frozen=True)
class Step:
    """What one assignment took.

    Attributes:
        needed_bytes: Of the tensors that its devices did not hold before.
        read_bytes: That all of them read, from anywhere.
        gateway_bytes: Sent by the gateway's weights server.
        sources: Device to bytes by source.
    """

    name: str
    seconds: float
    needed_bytes: int
    read_bytes: int
    gateway_bytes: int
    sources: dict[str, dict[str, int]]


class Counted:
    """An ASGI application whose answers' bytes are counted."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.num_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def count(message: Message) -> None:
            if message["type"] == "http.response.body":
                self.num_bytes += len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, count)


class SeparateFog(RealFog):
    """Nodes that share nothing but the network."""

    context_tokens = 2048
    patience_seconds = 300.0

    def _settings_of(self, device: str) -> dict[str, str]:
        return {
            "E2LLM_NODE_CACHE": str(self.folder / device / "cache"),
            "E2LLM_NODE_SERVE": "127.0.0.1:0",
        }

    async def kill_while_loading(self, device: str, victims: Sequence[str]) -> None:
        """Kill ``victims`` when ``device`` has read a part of what it needs."""

        def is_reading() -> bool:
            loaded = self.loaded.get(device)
            return (
                loaded is not None
                and loaded.version == self.version
                and loaded.loaded_bytes > KILL_AT_SHARE * loaded.total_bytes > 0
            )

        await self._until(is_reading, f"{device} reads")
        for victim in victims:
            self.nodes[victim].kill()


def main() -> None:
    arguments = read_arguments()
    with tempfile.TemporaryDirectory(prefix="e2llm-loading-") as scratch:
        model_bytes, steps = asyncio.run(measure(arguments, Path(scratch)))
    if arguments.json:
        report = {
            **context("torch"),
            "model": arguments.folder.name,
            "weights": arguments.weights,
            "model_bytes": model_bytes,
            "steps": [asdict(step) for step in steps],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(markdown(arguments, model_bytes, steps))


async def measure(arguments: argparse.Namespace, scratch: Path) -> tuple[int, list[Step]]:
    settings = settings_for(
        arguments.folder, scratch / "gateway", public_url="http://here", weights=arguments.weights
    )
    api = Api(FakeEngine(lambda _generation: []), settings)
    assert api.slot.served is not None, "prepared by Api"
    listener = listen("127.0.0.1", 0)
    counted = Counted(api.app)
    server = HttpServer(counted)
    serving = asyncio.create_task(server.serve([listener]))
    # Signed for the address that the system has chosen, with the key that the app checks by.
    signer = UrlSigner(b"k" * 32, f"http://127.0.0.1:{listener.getsockname()[1]}")
    manifest = with_urls(api.slot.served.manifest, signer, int(time.time()) + 3600)
    num_layers = parse_config(manifest.config).num_layers
    cuts = (num_layers // 2, num_layers)
    one, two, three = (
        make_replica(cuts, devices, Role.BOTH, slots=4, kv_tokens=4096)
        for devices in (DEVICES[:2], DEVICES[2:4], (DEVICES[4], DEVICES[3]))
    )
    fog = SeparateFog(scratch, DEVICES)
    await fog.start()
    steps: list[Step] = []

    async def step(name: str, replicas: list[Replica], new: Sequence[Stage]) -> None:
        began, sent = time.perf_counter(), counted.num_bytes
        await fog.serve(manifest, replicas)
        sources = {
            stage.device: {each.source: each.num_bytes for each in fog.loaded[stage.device].sources}
            for stage in new
        }
        steps.append(
            Step(
                name=name,
                seconds=time.perf_counter() - began,
                needed_bytes=sum(bytes_of(manifest, stage) for stage in new),
                read_bytes=sum(sum(given.values()) for given in sources.values()),
                gateway_bytes=counted.num_bytes - sent,
                sources=sources,
            )
        )

    try:
        await step("two nodes load a replica", [one], one.stages)
        await step("two more load the same layers", [one, two], two.stages)
        killing = asyncio.create_task(fog.kill_while_loading(DEVICES[4], (DEVICES[0], DEVICES[2])))
        await step(
            "a fifth loads the first half; both that have it are killed meanwhile",
            [one, two, three],
            three.stages[:1],
        )
        await killing
    finally:
        await fog.stop()
        server.should_exit = True
        await serving
    return sum(info.num_bytes for info in manifest.tensors.values()), steps


def bytes_of(manifest: ModelManifest, stage: Stage) -> int:
    """Return what the tensors of a stage take as the checkpoint stores them."""
    config = parse_config(manifest.config)
    names = stage_tensor_names(config, stage.layers, stage.embedding, stage.head)
    return sum(manifest.tensors[name].num_bytes for name in dict.fromkeys(names))


def markdown(arguments: argparse.Namespace, model_bytes: int, steps: Sequence[Step]) -> str:
    lines = [
        f"{arguments.folder.name}, {model_bytes / MIB:.0f} MiB, held in {arguments.weights}; MiB",
        "",
        "| step | seconds | needed | read | from the gateway | sources |",
        "| --- " * 6 + "|",
    ]
    for step in steps:
        told = "; ".join(
            f"{device}: " + ", ".join(f"{name} {size / MIB:.1f}" for name, size in given.items())
            for device, given in step.sources.items()
        )
        lines.append(
            f"| {step.name} | {step.seconds:.1f} | {step.needed_bytes / MIB:.1f} "
            f"| {step.read_bytes / MIB:.1f} | {step.gateway_bytes / MIB:.1f} | {told} |"
        )
    return "\n".join(lines)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="bfloat16")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
