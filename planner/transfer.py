"""How long a prompt's KV cache takes from the replica that prefills to the one that decodes.

Pure. Both replicas are split in their own way, so each pair of stages exchanges the layers
that both hold. Every device has one full-duplex link to the broker unless it has a direct way
to the other; the slowest link sets the pace, since all work at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planner.cost import DeviceCost
from planner.performance import Performance


@dataclass(frozen=True, slots=True)
class KvTransfer:
    """The KV cache of one prompt on its way, with the links to itself.

    Attributes:
        num_bytes: What leaves the sending devices; a device in both replicas keeps its own.
        seconds: From the first byte to the last.
        busy: Seconds of work of each link, or direct way.
    """

    num_bytes: int
    seconds: float
    busy: Mapping[tuple[str, ...], float] = field(default_factory=dict)

    def exposed_seconds(self, prefill_seconds: float, num_chunks: int = 1) -> float:
        """Return how long after prefill the last byte arrives.

        KV leaves after each of ``num_chunks`` chunks while the next is computed; with one
        chunk nothing overlaps. Either the last chunk's KV or the link's backlog decides.
        """
        chunk = 1 / num_chunks
        return max(self.seconds * chunk, self.seconds - prefill_seconds * (1 - chunk))


def kv_transfer(
    costs: Sequence[DeviceCost],
    kv_bytes: Sequence[int],
    prompt_tokens: int,
    sender: Performance,
    receiver: Performance,
) -> KvTransfer:
    """Return the transfer of one prompt between two replicas of a fog.

    Args:
        costs: Of the fog's devices, which the replicas name by index.
        kv_bytes: [L], KV cache of one position in each layer.
        prompt_tokens: Length of the prompt.
        sender: The replica that prefills.
        receiver: The replica that decodes.
    """
    busy: defaultdict[tuple[str, ...], float] = defaultdict(float)
    latency, total = 0.0, 0
    for source, (start, end) in zip(sender.devices, sender.ranges, strict=True):
        for target, (first, last) in zip(receiver.devices, receiver.ranges, strict=True):
            num_bytes = prompt_tokens * sum(kv_bytes[max(start, first) : min(end, last)])
            if source == target or not num_bytes:
                continue
            total += num_bytes
            one, other = costs[source], costs[target]
            way = one.peers.get(other.id)
            if way is not None:
                busy["way", one.id, other.id] += num_bytes / way.bytes_per_second
                latency = max(latency, way.latency_seconds)
            else:
                busy["up", one.id] += num_bytes / one.bytes_per_second
                busy["down", other.id] += num_bytes / other.bytes_per_second
                latency = max(latency, one.latency_seconds + other.latency_seconds)
    return KvTransfer(total, latency + max(busy.values(), default=0.0), busy)
