"""A solution of the search as the plan that goes over the bus. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from broker.placement import replica_id
from broker.plan import (
    IdleDevice,
    LayerRange,
    Plan,
    PlanState,
    Rates,
    Replica,
    Role,
    SingleDevice,
    Stage,
)
from planner.cost import hop_seconds
from planner.explain import format_bytes, format_seconds, idle_reason, owner_text
from planner.flow import flow_of
from planner.groupings.search import Solution, best_single, rival_of
from planner.performance import Member
from planner.replicas import Fog

_ROLE_ORDER = (Role.PREFILL, Role.DECODE, Role.BOTH)


def assemble(fog: Fog, solution: Solution, optimality: str) -> Plan:
    """Return the plan, version 0 and ``preparing``, with predictions and reasons.

    Predicted rates are those under full load; ``ttft_seconds`` and ``tpot_seconds`` are
    those of a lone request.
    """
    replicas = sorted(
        ((planned_replica(fog, member), member) for member in solution.members),
        key=lambda pair: place_in_plan(pair[0].role, pair[0].id),
    )
    reasons: dict[str, str] = {}
    for replica, member in replicas:
        for index, device in enumerate(member.performance.devices):
            reasons[fog.costs[device].id] = _place_reason(fog, replica, member, index)
    rival = rival_of(fog)
    idle = [
        IdleDevice(device=cost.id, reason=idle_reason(fog, device, solution, rival))
        for device, cost in enumerate(fog.costs)
        if cost.id not in reasons
    ]
    reasons.update({entry.device: f"idle: {entry.reason}" for entry in idle})
    model = fog.model
    return Plan(
        version=0,
        state=PlanState.PREPARING,
        model=model.name,
        revision=model.revision,
        weights=model.weights,
        kv_format=model.kv_format,
        kv_transfer=model.kv_transfer,
        chunk_tokens=fog.workload.chunk_tokens,
        context_tokens=fog.workload.context_tokens,
        replicas=[replica for replica, _ in replicas],
        idle=idle,
        reasons=dict(sorted(reasons.items())),
        predicted=_fog_rates(fog, solution.members),
        best_single_device=_single_device(fog),
        optimality=optimality,
    )


def _single_device(fog: Fog) -> SingleDevice | None:
    member = best_single(fog)
    if member is None:
        return None
    return SingleDevice(
        device=fog.costs[member.performance.devices[0]].id, predicted=_fog_rates(fog, [member])
    )


def place_in_plan(role: Role, replica_id: str) -> tuple[int, str]:
    """Return by what a plan's replicas are sorted."""
    return _ROLE_ORDER.index(role), replica_id


def planned_replica(fog: Fog, member: Member) -> Replica:
    """Return one member of a solution as a replica of a plan."""
    performance = member.performance
    costs = [fog.costs[device] for device in performance.devices]
    model = fog.model
    stages = []
    offloads = performance.offloads or (0,) * len(costs)
    for index, (cost, (start, end)) in enumerate(zip(costs, performance.ranges, strict=True)):
        hop = hop_seconds(costs[index - 1], cost)
        decode = cost.decode_table(start, end, offloads[index])
        prompt = cost.prefill.stage_seconds(start, end, offloads[index])
        stages.append(
            Stage(
                device=cost.id,
                layers=LayerRange(start, end),
                embedding=start == 0,
                head=end == model.num_layers,
                # What the stage does in its role: a prompt, or one row's decode step.
                predicted_seconds=prompt if member.role is Role.PREFILL else decode[0].seconds,
                decode_seconds=decode,
                # From the stage before; round the ring, from the last to the first.
                hop_seconds=hop,
                hop_row_seconds=hop_seconds(costs[index - 1], cost, 2) - hop,
            )
        )
    return Replica(
        id=replica_id(
            model.revision,
            model.weights,
            [(stage.device, stage.layers) for stage in stages],
            model.kv_format,
            model.kv_transfer,
        ),
        role=member.role,
        slots=performance.slots,
        prefill_slots=len(stages) + 1,
        kv_tokens=performance.kv_tokens,
        stages=stages,
        predicted=_rates(fog, member),
    )


def _rates(fog: Fog, member: Member) -> Rates:
    work, found = fog.workload, member.performance
    seconds = {
        Role.PREFILL: work.prompt_tokens / found.prefill_rate,
        Role.DECODE: work.answer_tokens / found.decode_rate,
        Role.BOTH: fog.both_seconds(found),
    }[member.role]
    return Rates(
        prefill_tokens_per_second=found.prefill_rate,
        decode_tokens_per_second=found.decode_rate,
        requests_per_second=1 / seconds,
        ttft_seconds=found.ttft_seconds,
        tpot_seconds=found.tpot_seconds,
    )


def _fog_rates(fog: Fog, members: Sequence[Member]) -> Rates:
    prefills = [m.performance for m in members if m.role is not Role.DECODE]
    decodes = [m.performance for m in members if m.role is not Role.PREFILL]
    terms = fog.terms
    flow = flow_of(members, fog.workload, terms)
    kv_times = terms.kv_times(members, flow)
    targets = fog.objective.has_targets
    return Rates(
        prefill_tokens_per_second=sum(p.prefill_rate for p in prefills),
        decode_tokens_per_second=sum(p.decode_rate for p in decodes),
        requests_per_second=flow.rate,
        ttft_seconds=min(p.ttft_seconds for p in prefills),
        tpot_seconds=min(p.tpot_seconds for p in decodes),
        good_requests_per_second=terms.good_rate(members, flow) if targets else None,
        kv_seconds=kv_times.seconds or None,
        kv_exposed_seconds=kv_times.exposed_seconds if kv_times.seconds else None,
        joules_per_token=terms.joules_per_token(members, flow),
    )


def _place_reason(fog: Fog, replica: Replica, member: Member, index: int) -> str:
    stage = replica.stages[index]
    start, end = stage.layers.start, stage.layers.end
    cost = fog.costs[member.performance.devices[index]]
    what = "prompt" if replica.role is Role.PREFILL else "decode step"
    slowest = max(s.predicted_seconds for s in replica.stages)
    pace = ", the slowest stage" if stage.predicted_seconds == slowest else ""
    ends = [name for name, held in (("embedding", stage.embedding), ("head", stage.head)) if held]
    used = fog.model.stage_bytes(start, end, member.performance.kv_tokens)
    moved = member.performance.offloads[index] if member.performance.offloads else 0
    used -= sum(fog.model.ffn_bytes[start : start + moved])
    host = f", the feed-forward weights of {moved} layers are in host memory" if moved else ""
    return (
        f"stage {index + 1} of {len(replica.stages)} of {replica.role} replica {replica.id}: "
        f"layers {start} to {end - 1}{''.join(f' and {name}' for name in ends)}, "
        f"{format_seconds(stage.predicted_seconds)} per {what}"
        f"{pace if len(replica.stages) > 1 else ''}; weights and KV cache of "
        f"{member.performance.kv_tokens} positions take {format_bytes(used)} of the "
        f"{format_bytes(cost.memory_bytes)} offered{host}{owner_text(cost)}"
    )
