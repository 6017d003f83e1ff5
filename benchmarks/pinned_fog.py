"""A fog for benchmarks: two real nodes, each on a core of its own, with plans by hand.

Plans say what the planner would: stages have the times that follow from the nodes' own
profiles, by the planner's own functions.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Final

from broker.codec import decode_control
from broker.control import DeviceProfile, ModelManifest
from broker.mqtt import MqttTransport
from broker.placement import replica_id
from broker.plan import LayerRange, Replica, Role, Stage
from broker.telemetry import Telemetry
from broker.topics import DEVICE_PROFILE, DEVICE_TELEMETRY, PLANNER_USER
from broker.transport import Received
from planner.cost import DeviceCost, device_cost, hop_seconds
from planner.live.conditions import Condition
from planner.live.inputs import device_spec, model_spec
from planner.model import Workload
from tests.support.bus import SITE
from tests.support.real_fog import RealFog

DEVICES: Final = ("first", "second")
MAX_ROWS: Final = 16
WORKLOAD: Final = Workload(prompt_tokens=16, answer_tokens=64, context_tokens=256)


class PinnedFog(RealFog):
    """Each node on a core of its own; broker and gateway where the system puts them."""

    chunk_tokens = WORKLOAD.chunk_tokens
    context_tokens = WORKLOAD.context_tokens

    def start_node(self, device: str) -> None:
        """Start a node and pin it before it starts threads, which inherit the core."""
        super().start_node(device)
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(self.nodes[device].pid, {cores[DEVICES.index(device) % len(cores)]})


class Observer:
    """What the nodes say of themselves."""

    def __init__(self, fog: RealFog) -> None:
        self._client = MqttTransport(fog.broker.address(PLANNER_USER), "two-nodes")
        topics = (DEVICE_PROFILE, DEVICE_TELEMETRY)
        self._client.subscribe([(topic.filter(SITE), topic.qos) for topic in topics])
        self._client.connect()
        self.profiles: dict[str, DeviceProfile] = {}
        self.telemetry: dict[str, Telemetry] = {}

    def read(self) -> None:
        """Take in what has arrived."""
        while (event := self._client.receive(0)) is not None:
            if not isinstance(event, Received):
                continue
            if names := DEVICE_PROFILE.match(event.topic):
                self.profiles[names["device"]] = decode_control(event.payload, DeviceProfile)
            elif names := DEVICE_TELEMETRY.match(event.topic):
                self.telemetry[names["device"]] = decode_control(event.payload, Telemetry)

    async def costs(self, manifest: ModelManifest) -> list[DeviceCost]:
        """Wait until both nodes have measured themselves, and return their costs."""
        spec = model_spec(manifest)
        while True:
            self.read()
            known = [self.profiles[device] for device in DEVICES if device in self.profiles]
            known = [each for each in known if each.model_revision == manifest.revision]
            if len(known) == len(DEVICES):
                specs = [
                    device_spec(device, profile, Condition(), spec)
                    for device, profile in zip(DEVICES, known, strict=True)
                ]
                return [device_cost(each, spec, WORKLOAD, MAX_ROWS) for each in specs]
            await asyncio.sleep(0.1)

    async def compute_seconds(self, replica: Replica) -> float:
        """Return the nodes' usual times of a step of a replica, all stages together."""
        self.telemetry.clear()
        while len(self.telemetry) < len(DEVICES):
            await asyncio.sleep(0.1)
            self.read()
        times = [self.telemetry[s.device].stage_seconds or {} for s in replica.stages]
        total: float = sum(each[replica.id] for each in times)
        return total

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


def make_replica(
    manifest: ModelManifest, costs: Sequence[DeviceCost], ranges: Sequence[LayerRange]
) -> Replica:
    num_layers = ranges[-1].end
    stages = []
    for index, (cost, layers) in enumerate(zip(costs, ranges, strict=True)):
        before = costs[index - 1]
        hop = hop_seconds(before, cost)
        table = cost.decode_table(layers.start, layers.end)
        stages.append(
            Stage(
                device=cost.id,
                layers=layers,
                embedding=layers.start == 0,
                head=layers.end == num_layers,
                predicted_seconds=table[0].seconds,
                decode_seconds=table,
                hop_seconds=hop,
                hop_row_seconds=hop_seconds(before, cost, 2) - hop,
            )
        )
    places = [(stage.device, stage.layers) for stage in stages]
    return Replica(
        id=replica_id(manifest.revision, manifest.weights, places),
        role=Role.BOTH,
        slots=MAX_ROWS,
        prefill_slots=MAX_ROWS,
        kv_tokens=MAX_ROWS * WORKLOAD.context_tokens,
        stages=stages,
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
