"""KV transfers on shared links: a star of full-duplex links around one broker. Pure.

The network knows flows between devices and their bytes. Stages' own messages (hidden states
of a few kilobytes) are part of the stages' hops and do not compete here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final, Generic, TypeVar

from planner.simulation.scenario import Network, Sharing, SimReplica

_SWITCH: Final = "switch"
# A flow with less than this to go has arrived: rounding leaves a rest.
_DONE_BYTES: Final = 1e-6


OwnerT = TypeVar("OwnerT")


@dataclass(slots=True, eq=False)
class Transfer(Generic[OwnerT]):
    """KV on its way.

    Attributes:
        owner: Whatever the caller gave.
        num_left: Flows that have not arrived.
    """

    owner: OwnerT
    num_left: int = 0


@dataclass(slots=True, eq=False)
class _Flow(Generic[OwnerT]):
    transfer: Transfer[OwnerT]
    links: tuple[tuple[str, str], ...]
    bytes_left: float
    latency_seconds: float
    rate: float = 0.0


class Links(Generic[OwnerT]):
    """All flows in the network, and when the next one arrives."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._capacity: dict[tuple[str, str], float] = {}
        for device, link in network.links.items():
            self._capacity["up", device] = link.bytes_per_second
            self._capacity["down", device] = link.bytes_per_second
        if network.switch_bytes_per_second < inf:
            self._capacity["through", _SWITCH] = network.switch_bytes_per_second
        self._flows: list[_Flow[OwnerT]] = []
        self._arriving: list[tuple[float, _Flow[OwnerT]]] = []
        self._now = 0.0
        self.moved_bytes = 0.0

    def send(
        self, now: float, owner: OwnerT, parts: list[tuple[str, str, float]]
    ) -> Transfer[OwnerT]:
        """Start a transfer of (sender, receiver, bytes) parts, all at once."""
        self._advance(now)
        transfer = Transfer(owner)
        for sender, receiver, num_bytes in parts:
            if sender == receiver or num_bytes <= 0:
                continue
            links = tuple(
                name
                for name in (("up", sender), ("through", _SWITCH), ("down", receiver))
                if name in self._capacity
            )
            flow = _Flow(transfer, links, num_bytes, self.latency_seconds(sender, receiver))
            transfer.num_left += 1
            self.moved_bytes += num_bytes
            if links:
                self._flows.append(flow)
            else:
                self._arriving.append((now + flow.latency_seconds, flow))
        if transfer.num_left:
            self._share()
        return transfer

    def latency_seconds(self, sender: str, receiver: str) -> float:
        """Return the way of a byte from device to broker to device."""
        links = self._network.links
        return sum(
            links[device].latency_seconds for device in (sender, receiver) if device in links
        )

    def rate(self, sender: str, receiver: str) -> float:
        """Return the bytes per second of a flow that meets nobody."""
        names = (("up", sender), ("through", _SWITCH), ("down", receiver))
        return min(self._capacity.get(name, inf) for name in names)

    def alone_seconds(self, sender: str, receiver: str, num_bytes: float) -> float:
        """Return how long bytes take that meet nobody."""
        return self.latency_seconds(sender, receiver) + num_bytes / self.rate(sender, receiver)

    def cancel(self, now: float, transfer: Transfer[OwnerT]) -> None:
        """Forget a transfer; what it had not sent is not counted as moved."""
        self._advance(now)
        for flow in self._flows:
            if flow.transfer is transfer:
                self.moved_bytes -= flow.bytes_left
        self._flows = [flow for flow in self._flows if flow.transfer is not transfer]
        self._arriving = [entry for entry in self._arriving if entry[1].transfer is not transfer]
        self._share()

    def next_seconds(self) -> float:
        """Return when something changes next; infinite when nothing is under way."""
        if not self._flows and not self._arriving:
            return inf
        due = inf
        for flow in self._flows:
            if flow.rate > 0:
                due = min(due, self._now + flow.bytes_left / flow.rate)
        for at, _ in self._arriving:
            due = min(due, at)
        return due

    def arrived(self, now: float) -> list[Transfer[OwnerT]]:
        """Go on to ``now`` and return the transfers that are complete."""
        self._advance(now)
        done = [flow for flow in self._flows if flow.bytes_left <= _DONE_BYTES]
        if done:
            self._flows = [flow for flow in self._flows if flow.bytes_left > _DONE_BYTES]
            self._arriving.extend((now + flow.latency_seconds, flow) for flow in done)
            self._share()
        complete = []
        still = []
        for at, flow in self._arriving:
            if at > now + 1e-12:
                still.append((at, flow))
                continue
            flow.transfer.num_left -= 1
            if flow.transfer.num_left == 0:
                complete.append(flow.transfer)
        self._arriving = still
        return complete

    def _advance(self, now: float) -> None:
        elapsed = now - self._now
        if elapsed > 0:
            for flow in self._flows:
                # Less than a nanosecond's worth is rounding; it would never arrive.
                flow.bytes_left -= flow.rate * elapsed
                if flow.bytes_left < flow.rate * 1e-9:
                    flow.bytes_left = 0.0
            self._now = now

    def _share(self) -> None:
        """Give every flow its rate."""
        flows = self._flows
        if not flows:
            return
        if len(flows) == 1:
            flows[0].rate = min(self._capacity[name] for name in flows[0].links)
        elif self._network.sharing is Sharing.FIFO:
            taken: set[tuple[str, str]] = set()
            for flow in flows:
                is_next = taken.isdisjoint(flow.links)
                flow.rate = min(self._capacity[name] for name in flow.links) if is_next else 0.0
                taken.update(flow.links)
        else:
            self._share_fairly()

    def _share_fairly(self) -> None:
        """Max-min fairness by filling: the tightest link fixes the rates of its flows."""
        left = dict.fromkeys((name for flow in self._flows for name in flow.links), 0.0)
        users = dict.fromkeys(left, 0)
        for name in left:
            left[name] = self._capacity[name]
        for flow in self._flows:
            for name in flow.links:
                users[name] += 1
        open_flows = list(self._flows)
        while open_flows:
            tightest = min(
                (name for name in left if users[name]), key=lambda name: left[name] / users[name]
            )
            rate = left[tightest] / users[tightest]
            still = []
            for flow in open_flows:
                if tightest not in flow.links:
                    still.append(flow)
                    continue
                flow.rate = rate
                for name in flow.links:
                    left[name] = max(left[name] - rate, 0.0)
                    users[name] -= 1
            open_flows = still


def kv_shares(sender: SimReplica, receiver: SimReplica) -> list[tuple[str, str, float]]:
    """Return (from device, to device, share of a position's KV): where layer ranges overlap.

    Stages without a layer range hold equal shares. The shares of all pairs add up to 1.
    """
    shares = []
    for source, (start, end) in zip(sender.stages, _ranges(sender), strict=True):
        for target, (low, high) in zip(receiver.stages, _ranges(receiver), strict=True):
            overlap = min(end, high) - max(start, low)
            if overlap > 1e-12:
                shares.append((source.device, target.device, overlap))
    return shares


def _ranges(replica: SimReplica) -> list[tuple[float, float]]:
    """Return each stage's part of the model, as a range within [0, 1]."""
    stages = replica.stages
    if any(stage.layers is None for stage in stages):
        return [(i / len(stages), (i + 1) / len(stages)) for i in range(len(stages))]
    layers = [stage.layers for stage in stages if stage.layers is not None]
    num_layers = layers[-1][1]
    return [(start / num_layers, end / num_layers) for start, end in layers]
