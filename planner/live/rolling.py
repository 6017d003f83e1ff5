"""The plans on the way from one plan to another, where memory does not hold both. Pure.

Make before break needs room for old and new stages on every device. Where it is missing, replicas
change one after the other: a plan without the replica that must go comes first, so that no new
request is bound to it and the running ones end; then one with the replica that takes its place.
All the while some replica is complete, and any complete replica can serve both roles. Only where
every old replica stands in the way of every new one is there a gap.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec.structs

from broker.plan import Plan, Replica
from planner.live.assignments import fits, stages_by_device
from planner.live.target import is_for
from planner.model import ModelSpec


def way(
    active: Plan | None,
    coming: Plan,
    memory_bytes: Mapping[str, int],
    model: ModelSpec,
    ready: Collection[str],
) -> list[Plan]:
    """Return the plans to carry out one after the other; the last is ``coming``.

    Args:
        active: The plan that serves, if any.
        coming: Where to go.
        memory_bytes: Memory that each device offers.
        model: The model of both; an active plan for another one counts as none.
        ready: Devices that are there; a replica that lost one serves nobody.
    """
    serving: dict[str, Replica] = {}
    if active is not None and is_for(active, model):
        serving = {
            replica.id: replica
            for replica in active.replicas
            if all(stage.device in ready for stage in replica.stages)
        }
    final = {replica.id: replica for replica in coming.replicas}
    room = _Room(memory_bytes, model, coming.context_tokens)
    wanted = [replica for replica in coming.replicas if replica.id not in serving]
    # What both plans have takes the role of the coming one at once.
    present = {name: final.get(name, replica) for name, replica in serving.items()}
    if not present or not any(room.lacking(present, (*wanted,))):
        return [coming]
    plans: list[dict[str, Replica]] = []
    while wanted:
        given_up = {
            replica.id: frozenset(room.lacking(present, (replica,))) - final.keys()
            for replica in wanted
        }
        # First what leaves somebody serving, then what takes the least away.
        first = min(
            wanted,
            key=lambda replica: (given_up[replica.id] == present.keys(), len(given_up[replica.id])),
        )
        gone = given_up[first.id]
        if gone:
            present = {name: replica for name, replica in present.items() if name not in gone}
            if present:
                plans.append(present)
        present = {**present, first.id: first}
        wanted.remove(first)
        for replica in tuple(wanted):
            if not any(room.lacking(present, (replica,))):
                present = {**present, replica.id: replica}
                wanted.remove(replica)
        plans.append(present)
    if plans[-1].keys() == final.keys():
        plans.pop()
    return [*(_step(coming, replicas) for replicas in plans), coming]


@dataclass(frozen=True, slots=True)
class _Room:
    memory_bytes: Mapping[str, int]
    model: ModelSpec
    context_tokens: int

    def lacking(self, present: Mapping[str, Replica], more: Collection[Replica]) -> set[str]:
        """Return the replicas that must go from devices where ``more`` would not fit beside."""
        here, new = stages_by_device(present.values()), stages_by_device(more)
        return {
            stage.replica
            for device, stages in new.items()
            if not fits(
                [*here.get(device, ()), *stages],
                self.memory_bytes.get(device, 0),
                self.model,
                self.context_tokens,
            )
            for stage in here.get(device, ())
        }


def _step(coming: Plan, replicas: Mapping[str, Replica]) -> Plan:
    """Return the plan of some replicas on the way to ``coming``.

    Devices without a stage in it have no reason there, so that a planner which starts now does
    not take it for where to stay.
    """
    devices = {stage.device for replica in replicas.values() for stage in replica.stages}
    reasons = {d: why for d, why in coming.reasons.items() if d in devices}
    return msgspec.structs.replace(
        coming,
        replicas=list(replicas.values()),
        reasons={**dict.fromkeys(sorted(devices), "on the way to another plan"), **reasons},
        trigger=f"{coming.trigger}; one replica after the other, as memory does not hold both",
    )
