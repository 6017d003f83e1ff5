"""From plans and measured devices to simulated replicas. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from broker.control import LayerTimes
from broker.plan import LayerRange, Plan, Replica, Stage
from planner.cost import decode_grid, prefill_seconds
from planner.model import DeviceSpec, ModelSpec, Workload
from planner.simulation.scenario import (
    GroupRule,
    Network,
    SimReplica,
    SimStage,
)
from planner.simulation.tables import DecodeTable, PrefillCurve, decode_times, prefill_rate

# A stage measured to take no time at all would finish before it began.
_LEAST_SECONDS = 1e-9


def replicas_from_plan(
    plan: Plan,
    devices: Iterable[DeviceSpec],
    model: ModelSpec,
    workload: Workload,
    *,
    groups: GroupRule = GroupRule.BEST,
) -> tuple[SimReplica, ...]:
    """Return a plan's replicas with the times that its devices measured.

    Prefill follows the measured lengths and decode the measured batches and contexts, so the
    simulation knows more than the plan, which has one prompt length and one mean context.
    Hops take the direct ways between devices (`DeviceSpec.peers`); KV caches know the star only.

    Args:
        plan: Who holds which layers, in which role, with how many slots.
        devices: At least those of the plan, at their speed now.
        model: The plan's model.
        workload: Gives the mean context for which routers know decode times.
        groups: How rows are cut into groups.

    Raises:
        ValueError: The plan names a device that is not among ``devices``.
    """
    known = {device.id: device for device in devices}
    missing = sorted({s.device for r in plan.replicas for s in r.stages} - set(known))
    if missing:
        raise ValueError(f"the plan uses devices without a profile: {', '.join(missing)}")
    return tuple(
        measured_replica(replica, known, model, workload, plan.chunk_tokens, groups=groups)
        for replica in plan.replicas
    )


def measured_replica(
    replica: Replica,
    devices: Mapping[str, DeviceSpec],
    model: ModelSpec,
    workload: Workload,
    chunk_tokens: int,
    *,
    groups: GroupRule = GroupRule.BEST,
) -> SimReplica:
    """Return one replica of a plan with the times that its devices, by id, measured."""
    members = [devices[stage.device] for stage in replica.stages]
    return SimReplica(
        id=replica.id,
        role=replica.role,
        stages=tuple(
            _measured_stage(
                members[index - 1], members[index], model, stage.layers, replica.kv_tokens
            )
            for index, stage in enumerate(replica.stages)
        ),
        slots=max(replica.slots, 1),
        kv_tokens=replica.kv_tokens,
        chunk_tokens=chunk_tokens,
        prefill_slots=max(replica.prefill_slots, 1),
        groups=groups,
        planned_context=workload.step_context,
    )


def _measured_stage(
    before: DeviceSpec, device: DeviceSpec, model: ModelSpec, layers: LayerRange, kv_tokens: int
) -> SimStage:
    own = layers.start + _num_in_host_memory(device, model, layers, kv_tokens)
    kinds = Counter((model.block_kinds[n], n < own) for n in range(layers.start, layers.end))
    parts: list[tuple[int, LayerTimes]] = [
        (count, (device.offloaded if is_in_host else device.blocks)[kind])
        for (kind, is_in_host), count in sorted(kinds.items())
    ]
    if layers.start == 0:
        parts.append((1, device.embedding))
    if layers.end == model.num_layers:
        parts.append((1, device.head))
    hop_seconds, byte_seconds = _way(before, device)
    return SimStage(
        device=device.id,
        prefill_seconds=_prefill_curve(parts, device.speed),
        decode_seconds=_decode_table(parts, device.speed),
        layers=(layers.start, layers.end),
        hop_seconds=hop_seconds,
        hop_row_seconds=model.activation_bytes * byte_seconds,
    )


def _way(sender: DeviceSpec, receiver: DeviceSpec) -> tuple[float, float]:
    """Return latency and seconds per byte, as `planner.cost.hop_seconds` has them."""
    direct = sender.peers.get(receiver.id)
    links = [sender.link, receiver.link] if direct is None else [direct]
    return (
        sum(link.latency_seconds for link in links),
        sum(1 / link.bytes_per_second for link in links),
    )


def _num_in_host_memory(
    device: DeviceSpec, model: ModelSpec, layers: LayerRange, kv_tokens: int
) -> int:
    """Return how many of a stage's first layers have their feed-forward part in host memory.

    A plan does not say so; as the planner has it, no more than the stage needs.
    """
    excess = model.stage_bytes(layers.start, layers.end, kv_tokens) - device.memory_bytes
    moved = 0
    while excess > 0 and moved < len(layers) and device.offloaded and model.ffn_bytes:
        excess -= model.ffn_bytes[layers.start + moved]
        moved += 1
    return moved


def _prefill_curve(parts: Sequence[tuple[int, LayerTimes]], speed: float) -> PrefillCurve:
    lengths = sorted({time.num_tokens for _, times in parts for time in times.prefill})
    # One more point beyond the last, so that the curve goes on as the planner's does.
    lengths.append(2 * lengths[-1])
    points: list[tuple[float, float]] = []
    for length in lengths:
        total = sum(count * prefill_seconds(times.prefill, length) for count, times in parts)
        points.append((float(length), max(total / speed, _LEAST_SECONDS)))
    return PrefillCurve(tuple(points))


def _decode_table(parts: Sequence[tuple[int, LayerTimes]], speed: float) -> DecodeTable:
    rows = sorted({time.batch for _, times in parts for time in times.decode})
    contexts = sorted({time.context for _, times in parts for time in times.decode})
    # As above, in both directions.
    rows.append(2 * rows[-1])
    contexts.append(2 * max(contexts[-1], 1))
    grids = [(count, decode_grid(times.decode, rows, contexts)) for count, times in parts]
    return DecodeTable(
        tuple(rows),
        tuple(contexts),
        tuple(
            tuple(
                max(sum(count * grid[r][c] for count, grid in grids) / speed, _LEAST_SECONDS)
                for c in range(len(contexts))
            )
            for r in range(len(rows))
        ),
    )


def replicas_from_rates(
    plan: Plan, *, groups: GroupRule = GroupRule.BEST
) -> tuple[SimReplica, ...]:
    """Return a plan's replicas from the plan alone: its decode tables and predicted rates.

    Without the devices' profiles a plan says how fast a replica prefills, not how its stages
    share that. Every stage gets the rate of the whole, which is right for throughput; one
    prompt alone then takes its stages' sum, shortened by chunks.
    """
    return tuple(
        _replica_from_rates(replica, plan.chunk_tokens, groups) for replica in plan.replicas
    )


def _replica_from_rates(replica: Replica, chunk_tokens: int, groups: GroupRule) -> SimReplica:
    rate = replica.predicted.prefill_tokens_per_second
    if not rate > 0:
        raise ValueError(f"replica {replica.id} has no predicted prefill rate")
    curve = prefill_rate(rate)

    def stage(found: Stage) -> SimStage:
        if not found.decode_seconds:
            raise ValueError(
                f"replica {replica.id}: the stage on {found.device} has no decode times"
            )
        table = decode_times(
            [(p.batch, max(p.seconds, _LEAST_SECONDS)) for p in found.decode_seconds]
        )
        return SimStage(
            device=found.device,
            prefill_seconds=curve,
            decode_seconds=table,
            layers=(found.layers.start, found.layers.end),
            hop_seconds=max(found.hop_seconds - found.hop_row_seconds, 0.0),
            hop_row_seconds=found.hop_row_seconds,
        )

    return SimReplica(
        id=replica.id,
        role=replica.role,
        stages=tuple(stage(found) for found in replica.stages),
        slots=max(replica.slots, 1),
        kv_tokens=replica.kv_tokens,
        chunk_tokens=chunk_tokens,
        prefill_slots=max(replica.prefill_slots, 1),
        groups=groups,
    )


def network_of(devices: Iterable[DeviceSpec]) -> Network:
    """Return the star of the devices' measured links to the broker."""
    return Network(links={device.id: device.link for device in devices})


def kv_bytes_per_token(model: ModelSpec) -> int:
    """Return what moving one position's KV of all layers sends."""
    return sum(model.sent_kv_bytes)
