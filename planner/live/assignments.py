"""What each device must hold now and prepare for the coming plan. Pure.

Make before break: while the coming plan is prepared, a device keeps the stages of the
running one beside the new ones, weights that both need being held once. Where its memory is
too small for both, it gives up its old stages first; `planner.live.rolling` sees to it that
somebody else serves then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from broker.plan import Plan, Replica, StageAssignment
from planner.live.needs import Needs


@dataclass(frozen=True, slots=True)
class Load:
    """Stages of one device.

    Attributes:
        hold: Stages that serve now, or will without a change.
        prepare: Stages of the coming plan that the device does not hold yet.
        is_shrunk: Whether old stages were given up because both do not fit.
    """

    hold: tuple[StageAssignment, ...] = ()
    prepare: tuple[StageAssignment, ...] = ()
    is_shrunk: bool = False


def stage_key(replica: str, stage: int) -> str:
    """Return the name of a stage as `broker.plan.Loaded` lists it."""
    return f"{replica}/{stage}"


def loads(
    active: Plan | None,
    coming: Plan | None,
    memory_bytes: Mapping[str, int],
    needs: Needs,
    ready: Collection[str],
) -> dict[str, Load]:
    """Return what each device of either plan is to hold and to prepare.

    Args:
        active: The plan that serves, if any.
        coming: The plan to prepare, if any; with one, old replicas that lost a device are
            given up, since nobody can use what is left of them.
        memory_bytes: Memory that each device offers.
        needs: Of both plans. Plans for models that nobody publishes count as none; what a device
            held for them it serves to its end while it loads (`nodes.holdings`).
        ready: Devices that are there.
    """
    old = _stages(active, needs, ready if coming is not None else None)
    new = _stages(coming, needs, None)
    found: dict[str, Load] = {}
    for device in sorted({*old, *new}):
        hold, wanted = old.get(device, []), new.get(device, [])
        if coming is None or not wanted:
            found[device] = Load(hold=tuple(hold))
            continue
        held = {(stage.replica, stage.stage) for stage in wanted}
        replaced = [stage for stage in hold if (stage.replica, stage.stage) not in held]
        known = {(stage.replica, stage.stage) for stage in hold}
        kept = [stage for stage in wanted if (stage.replica, stage.stage) in known]
        fresh = [stage for stage in wanted if (stage.replica, stage.stage) not in known]
        if not hold:
            # Nothing serves here yet, so what is loaded may stay as it is when the plan
            # becomes active.
            found[device] = Load(hold=tuple(fresh))
        elif replaced and not needs.fit([*replaced, *wanted], memory_bytes.get(device, 0)):
            found[device] = Load(hold=tuple(kept), prepare=tuple(fresh), is_shrunk=True)
        else:
            found[device] = Load(hold=(*replaced, *kept), prepare=tuple(fresh))
    return found


def _stages(
    plan: Plan | None, needs: Needs, ready: Collection[str] | None
) -> dict[str, list[StageAssignment]]:
    return stages_by_device(
        replica
        for part in (plan.parts if plan is not None else ())
        if needs.knows(part)
        for replica in part.replicas
        if ready is None or all(stage.device in ready for stage in replica.stages)
    )


def stages_by_device(replicas: Iterable[Replica]) -> dict[str, list[StageAssignment]]:
    """Return the stages that the devices of some replicas hold."""
    found: dict[str, list[StageAssignment]] = {}
    for replica in replicas:
        for index, stage in enumerate(replica.stages):
            found.setdefault(stage.device, []).append(_stage(replica, index))
    return found


def _stage(replica: Replica, index: int) -> StageAssignment:
    stage = replica.stages[index]
    return StageAssignment(
        replica=replica.id,
        stage=index,
        layers=stage.layers,
        embedding=stage.embedding,
        head=stage.head,
        kv_tokens=replica.kv_tokens,
        embedding_device=replica.embedding_device(index),
    )
