"""The plans on the way from one plan to another. Pure.

Make before break needs room for old and new stages on every device. Where it is missing, replicas
change one after the other: a plan without the replica that must go comes first, so that no new
request is bound to it and the running ones end; then one with the replica that takes its place.
All the while some replica is complete, and any complete replica can serve both roles. Only where
every old replica stands in the way of every new one is there a gap.

A model that the fog gives up leaves: as soon as another serves, its replicas take no new requests,
and they go when those that were accepted have ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec.structs

from broker.identity import ModelIdentity, identity
from broker.plan import Plan, Replica
from planner.live.assignments import stages_by_device
from planner.live.needs import Needs
from planner.model import ModelSpec

_Replicas = dict[str, Replica]


def way(
    active: Plan | None,
    coming: Plan,
    memory_bytes: Mapping[str, int],
    models: Iterable[ModelSpec],
    ready: Collection[str],
) -> list[Plan]:
    """Return the plans to carry out one after the other; the last is ``coming``.

    Args:
        active: The plan that serves, if any.
        coming: Where to go.
        memory_bytes: Memory that each device offers.
        models: That are published; an active plan for another one counts as none.
        ready: Devices that are there; a replica that lost one serves nobody.
    """
    needs = Needs.of(models, (active, coming))
    serving: _Replicas = {}
    for part in active.parts if active is not None else ():
        if needs.knows(part):
            serving |= {
                replica.id: replica
                for replica in part.replicas
                if all(stage.device in ready for stage in replica.stages)
            }
    final = {replica.id: replica for replica in coming.all_replicas}
    road = _Road(active, coming, needs, memory_bytes)
    wanted = [replica for replica in final.values() if replica.id not in serving]
    # What both plans have takes the role of the coming one at once.
    present = {name: final.get(name, replica) for name, replica in serving.items()}
    if not present:
        return [coming]
    if not any(road.lacking(present, (*wanted,))):
        # What is given up stays until what is new serves.
        steps = [{**present, **final}] if road.leaving(present) else []
    else:
        steps = _one_by_one(present, wanted, final, road)
    return [*(road.step(replicas) for replicas in steps), coming]


def _one_by_one(
    present: _Replicas, wanted: list[Replica], final: _Replicas, road: _Road
) -> list[_Replicas]:
    plans: list[_Replicas] = []
    while wanted:
        given_up = {
            replica.id: frozenset(road.lacking(present, (replica,))) - final.keys()
            for replica in wanted
        }
        # First what leaves somebody serving each model, then what takes the least away.
        first = min(
            wanted,
            key=lambda replica: (
                road.silences(given_up[replica.id], present),
                len(given_up[replica.id]),
            ),
        )
        gone = given_up[first.id]
        if gone:
            rest = {name: replica for name, replica in present.items() if name not in gone}
            if not rest and road.leaving(present):
                # Nothing of the other model fits beside: requests end first.
                plans.append(present)
            present = rest
            if present:
                plans.append(present)
        present = {**present, first.id: first}
        wanted.remove(first)
        for replica in tuple(wanted):
            if not any(road.lacking(present, (replica,))):
                present = {**present, replica.id: replica}
                wanted.remove(replica)
        plans.append(present)
    if plans[-1].keys() == final.keys():
        plans.pop()
    return plans


@dataclass(frozen=True, slots=True)
class _Road:
    active: Plan | None
    coming: Plan
    needs: Needs
    memory_bytes: Mapping[str, int]

    def lacking(self, present: Mapping[str, Replica], more: Collection[Replica]) -> set[str]:
        """Return the replicas that must go from devices where ``more`` would not fit beside."""
        here, new = stages_by_device(present.values()), stages_by_device(more)
        return {
            stage.replica
            for device, stages in new.items()
            if not self.needs.fit(
                [*here.get(device, ()), *stages], self.memory_bytes.get(device, 0)
            )
            for stage in here.get(device, ())
        }

    def leaving(self, replicas: Iterable[str]) -> set[ModelIdentity]:
        """Return the models of some replicas that the coming plan is not for."""
        return {self.needs.owners[name] for name in replicas} - {
            identity(part) for part in self.coming.parts
        }

    def silences(self, gone: Collection[str], present: Collection[str]) -> bool:
        """Whether a model loses all that serves it."""
        owners = self.needs.owners
        return bool({owners[n] for n in gone} - {owners[n] for n in present if n not in gone})

    def step(self, replicas: Mapping[str, Replica]) -> Plan:
        """Return the plan of some replicas on the way to the coming one.

        Devices without a stage in it have no reason there, so that a planner which starts now does
        not take it for where to stay.
        """
        of_model: dict[ModelIdentity, list[Replica]] = {}
        for replica in replicas.values():
            of_model.setdefault(self.needs.owners[replica.id], []).append(replica)
        known = {identity(part): part for part in self.active.parts} if self.active else {}
        known |= {identity(part): part for part in self.coming.parts}
        leaving = self.leaving(replicas)
        if not of_model.keys() - leaving and not self._is_in_the_way(replicas):
            leaving = set()  # It serves until something else does.
        why = "one replica after the other, as memory does not hold both"
        if leaving:
            names = ", ".join(sorted(known[key].model for key in leaving))
            why = f"what was asked of {names} is answered first"
        parts = [
            _part(known[key], of_model[key], key in leaving, f"{self.coming.trigger}; {why}")
            for key in sorted(of_model, key=lambda key: (key in leaving, [*known].index(key)))
        ]
        return msgspec.structs.replace(parts[0], others=parts[1:])

    def _is_in_the_way(self, replicas: Mapping[str, Replica]) -> bool:
        """Whether nothing of the coming plan fits beside what serves."""
        return all(self.lacking(replicas, (replica,)) for replica in self.coming.all_replicas)


def _part(plan: Plan, replicas: list[Replica], is_leaving: bool, trigger: str) -> Plan:
    devices = {stage.device for replica in replicas for stage in replica.stages}
    reasons = {d: why for d, why in plan.reasons.items() if d in devices}
    return msgspec.structs.replace(
        plan,
        replicas=replicas,
        others=[],
        is_leaving=is_leaving,
        reasons={**dict.fromkeys(sorted(devices), "on the way to another plan"), **reasons},
        trigger=trigger,
    )
