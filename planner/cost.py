"""Measured times to predicted times: what each device needs for each layer. Pure.

Units are seconds. A profile is a handful of points; here they become tables over layers and
over the rows of a decode group, at the workload's prompt length and mean context.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from broker.control import DecodeTime, LayerTimes, PrefillTime
from broker.grouping import interpolate
from broker.plan import BatchSeconds
from planner.model import DeviceSpec, ModelSpec, Workload
from planner.owner import FREE, Owner


def table_batches(max_rows: int) -> tuple[int, ...]:
    """Return 1, 2, 4, 8, ... and ``max_rows``: the knots of a plan's decode tables."""
    batches = [1]
    while batches[-1] * 2 < max_rows:
        batches.append(batches[-1] * 2)
    if max_rows > 1:
        batches.append(max_rows)
    return tuple(batches)


def prefill_seconds(times: Sequence[PrefillTime], num_tokens: int) -> float:
    """Return seconds for a whole prompt: linear between measured lengths, never falling.

    Below the shortest measured prompt it costs what that one did: a step has a fixed part,
    and a promise should err on the slow side. Beyond the longest the last slope goes on.
    """
    points = _rising((t.num_tokens, t.seconds) for t in times)
    return _line(points, num_tokens)


def decode_seconds(times: Sequence[DecodeTime], batch: int, context: int) -> float:
    """Return seconds of one step of ``batch`` rows that each see ``context`` positions.

    Linear between the measured contexts of each measured batch, then between batches.
    """
    return decode_grid(times, [batch], [context])[0][0]


def decode_grid(
    times: Sequence[DecodeTime], batches: Sequence[int], contexts: Sequence[int]
) -> list[list[float]]:
    """Return [B][C], `decode_seconds` for each batch and each context."""
    by_batch: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for time in times:
        by_batch[time.batch].append((time.context, time.seconds))
    curves = [(rows, _rising(points)) for rows, points in by_batch.items()]
    columns = []
    for context in contexts:
        at_context = _rising((rows, _line(points, context)) for rows, points in curves)
        columns.append([_line(at_context, batch) for batch in batches])
    return [list(line) for line in zip(*columns, strict=True)]


def _rising(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Sort by x and lift each y to the largest before it: more work is never faster.

    A measurement that says otherwise is noise, and the search for the largest batch that is
    fast enough relies on order.
    """
    rising: list[tuple[int, float]] = []
    for x, y in sorted(points):
        lifted = max(y, rising[-1][1]) if rising else y
        if rising and rising[-1][0] == x:
            rising[-1] = (x, lifted)
        else:
            rising.append((x, lifted))
    return rising


def _line(points: Sequence[tuple[int, float]], x: int) -> float:
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    index = min(bisect_left([p[0] for p in points], x), len(points) - 1)
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What one phase costs a device, in seconds.

    Attributes:
        layers: [L], each block.
        embedding: The embedding look-up.
        head: Final norm, head and sampling.
        offload_extra: [L], what a block takes longer with its feed-forward part in host
            memory; empty for a device that keeps everything in its own.
    """

    layers: tuple[float, ...]
    embedding: float
    head: float
    offload_extra: tuple[float, ...] = ()

    def stage_seconds(self, start: int, end: int, offloads: int = 0) -> float:
        """Return the compute of a stage with layers ``[start, end)`` and the ends it has.

        The first ``offloads`` of the layers have their feed-forward part in host memory.
        """
        total = sum(self.layers[start:end])
        if offloads:
            total += sum(self.offload_extra[start : start + offloads])
        total += self.embedding if start == 0 else 0.0
        total += self.head if end == len(self.layers) else 0.0
        return total


class Way(NamedTuple):
    """A direct way to another device; ``row_seconds`` is for one position's hidden states."""

    latency_seconds: float
    row_seconds: float
    bytes_per_second: float


class Power(NamedTuple):
    """What a device draws while it waits, and on top of that while it computes."""

    idle_watts: float
    extra_watts: float


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """All that the search needs to know of a device for one model and workload.

    Attributes:
        prefill: A prompt, mean over the buckets: not a prompt of the mean length, since
            time is not linear in it.
        prompts: A prompt of each of `Workload.prompt_shares`.
        decode: [B], one decode step of 1, 2, ... B rows, mean over the contexts of steps.
        latency_seconds: One way between device and broker, with half of a hop's overhead.
        row_seconds: The link's time for the hidden states of one position.
        bytes_per_second: The link's rate.
        host_memory_bytes: Host memory for feed-forward weights.
        peers: Device id to the direct way there.
        power: None where nobody knows.
        owner: What its owner allows.
    """

    id: str
    memory_bytes: int
    prefill: PhaseCost
    prompts: tuple[PhaseCost, ...]
    decode: tuple[PhaseCost, ...]
    latency_seconds: float
    row_seconds: float
    bytes_per_second: float
    host_memory_bytes: int = 0
    peers: Mapping[str, Way] = field(default_factory=dict)
    power: Power | None = None
    owner: Owner = FREE

    def decode_table(self, start: int, end: int, offloads: int = 0) -> list[BatchSeconds]:
        """Return a stage's decode times at the knots of `table_batches`."""
        return [
            BatchSeconds(rows, self.decode[rows - 1].stage_seconds(start, end, offloads))
            for rows in table_batches(len(self.decode))
        ]


def device_cost(
    device: DeviceSpec, model: ModelSpec, workload: Workload, max_rows: int
) -> DeviceCost:
    """Return the device's tables for ``model`` and ``workload`` at its speed now.

    Raises:
        ValueError: A kind of block was not measured; names the device.
    """
    lengths = workload.prompt_shares
    contexts = step_contexts(workload)
    knots = table_batches(max_rows)

    def prompt(times: LayerTimes, num_tokens: int) -> float:
        return prefill_seconds(times.prefill, num_tokens) / device.speed

    def decode(times: LayerTimes) -> list[float]:
        # Between the knots as the plan's tables say, so that the master of a replica
        # predicts the same numbers as the planner.
        table = [
            BatchSeconds(
                rows,
                sum(share * decode_seconds(times.decode, rows, at) for at, share in contexts)
                / device.speed,
            )
            for rows in knots
        ]
        return [interpolate(table, rows) for rows in range(1, max_rows + 1)]

    kinds = sorted(set(model.block_kinds))
    offloads = bool(model.ffn_bytes and device.host_memory_bytes and device.offloaded)
    extra_kinds = model.block_kinds if offloads else ()
    for measured in (device.blocks, device.offloaded) if offloads else (device.blocks,):
        if missing := [kind for kind in kinds if kind not in measured]:
            where = " with host memory" if measured is device.offloaded else ""
            raise ValueError(
                f"device {device.id}: no times{where} of blocks of kind {', '.join(missing)}"
            )

    def prompt_cost(num_tokens: int) -> PhaseCost:
        seconds = {kind: prompt(device.blocks[kind], num_tokens) for kind in kinds}
        extra = {
            kind: max(prompt(device.offloaded[kind], num_tokens) - seconds[kind], 0.0)
            for kind in set(extra_kinds)
        }
        return PhaseCost(
            tuple([seconds[kind] for kind in model.block_kinds]),
            prompt(device.embedding, num_tokens),
            prompt(device.head, num_tokens),
            tuple([extra[kind] for kind in extra_kinds]),
        )

    decode_of = {kind: decode(device.blocks[kind]) for kind in kinds}
    decode_extra: dict[str, list[float]] = {}
    for kind in kinds if offloads else ():
        pairs = zip(decode(device.offloaded[kind]), decode_of[kind], strict=True)
        decode_extra[kind] = [max(longer - shorter, 0.0) for longer, shorter in pairs]
    embedding, head = decode(device.embedding), decode(device.head)
    prompts = tuple(prompt_cost(length) for length, _ in lengths)
    return DeviceCost(
        id=device.id,
        memory_bytes=device.memory_bytes,
        prefill=mean_cost(prompts, [share for _, share in lengths]),
        prompts=prompts,
        decode=tuple(
            PhaseCost(
                tuple(decode_of[kind][row] for kind in model.block_kinds),
                embedding[row],
                head[row],
                tuple(decode_extra[kind][row] for kind in extra_kinds),
            )
            for row in range(max_rows)
        ),
        latency_seconds=device.link.latency_seconds + device.hop_overhead_seconds / 2,
        row_seconds=model.activation_bytes / device.link.bytes_per_second,
        bytes_per_second=device.link.bytes_per_second,
        host_memory_bytes=device.host_memory_bytes if offloads else 0,
        peers={
            peer: Way(
                link.latency_seconds,
                model.activation_bytes / link.bytes_per_second,
                link.bytes_per_second,
            )
            for peer, link in device.peers.items()
        },
        power=None
        if device.idle_watts is None or device.busy_watts is None
        else Power(device.idle_watts, device.busy_watts - device.idle_watts),
        owner=device.owner,
    )


def step_contexts(workload: Workload) -> list[tuple[int, float]]:
    """Return positions that decode steps see, each with its share of all steps.

    A request sees half of its answer on average; over a bucket's steps that is exact where
    time is linear in the context, as it is between two measured ones.
    """
    shares: defaultdict[int, float] = defaultdict(float)
    for bucket, share in workload.step_shares:
        shares[bucket.prompt_tokens + bucket.answer_tokens // 2] += share
    return sorted(shares.items())


def mean_cost(phases: Sequence[PhaseCost], shares: Sequence[float]) -> PhaseCost:
    """Return the mean of several phases' costs, weighted by ``shares``."""
    if len(phases) == 1:
        return phases[0]

    def mean(values: Iterable[float]) -> float:
        return sum(value * share for value, share in zip(values, shares, strict=True))

    return PhaseCost(
        tuple([mean(column) for column in zip(*[p.layers for p in phases], strict=True)]),
        mean(phase.embedding for phase in phases),
        mean(phase.head for phase in phases),
        tuple([mean(column) for column in zip(*[p.offload_extra for p in phases], strict=True)]),
    )


def hop_seconds(sender: DeviceCost, receiver: DeviceCost, rows: int = 1) -> float:
    """Return the way of ``rows`` positions from one device to another.

    Directly where they have a way of their own, else over the broker, which stores and
    forwards: both links carry the bytes one after the other.
    """
    if sender.id == receiver.id:
        return 0.0
    direct = sender.peers.get(receiver.id)
    if direct is not None:
        return direct.latency_seconds + rows * direct.row_seconds
    latency = sender.latency_seconds + receiver.latency_seconds
    return latency + rows * (sender.row_seconds + receiver.row_seconds)


def link_seconds(sender: DeviceCost, receiver: DeviceCost, rows: int = 1) -> float:
    """Return how long the slowest link of a hop is busy with ``rows`` positions."""
    direct = sender.peers.get(receiver.id)
    if direct is not None:
        return rows * direct.row_seconds
    return rows * max(sender.row_seconds, receiver.row_seconds)
