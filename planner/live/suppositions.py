"""What the planner would plan if devices were other ones. Pure; nothing is carried out.

A question on the bus (`broker.whatif`) names changes; the fog of now with these changes is
planned as the planner itself would (`planner.live.proposals`), so the running replicas are kept
where a better plan does not repay the move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec.structs

from broker.architecture import parse_config
from broker.control import ModelManifest
from broker.plan import Plan, Rates
from broker.topics import check_level
from broker.whatif import AddedDevice, Finding, Move, WhatIf, WhatIfAnswer
from planner.catalogue import CatalogueModel, WeightFormat, load_devices
from planner.live.proposals import Proposal, Question, propose
from planner.model import DeviceSpec, InfeasiblePlanError
from planner.moves import Holdings
from planner.planning import reassess


class WrongSuppositionError(ValueError):
    """A question makes no sense for the fog of now; the message says why."""


@dataclass(frozen=True, slots=True)
class Supposition:
    """A question, and the fog that it is about.

    Attributes:
        now: What is planned for without it.
        manifest: The model, for devices that nobody has measured.
    """

    asked: WhatIf
    now: Question
    manifest: ModelManifest


def answer(supposition: Supposition) -> WhatIfAnswer:
    """Return what would be planned."""
    asked, now = supposition.asked, supposition.now
    try:
        changed = supposed(supposition)
    except WrongSuppositionError as error:
        return unanswered(asked, Finding.REFUSED, str(error))
    try:
        if not changed.devices:
            raise InfeasiblePlanError("no device is left that may be given layers")
        found = propose(changed)
    except InfeasiblePlanError as error:
        impossible = unanswered(asked, Finding.IMPOSSIBLE, str(error))
        return msgspec.structs.replace(impossible, before=_before(now))
    return _planned(asked, now, changed, found)


def unanswered(asked: WhatIf, finding: Finding, reason: str) -> WhatIfAnswer:
    """Return an answer without a plan."""
    return WhatIfAnswer(request_id=asked.request_id, finding=finding, reason=reason)


def supposed(supposition: Supposition) -> Question:
    """Return what is planned for when everything is as supposed.

    Raises:
        WrongSuppositionError: A device that is to change is not there, one that is to join is,
            or nothing is known of what it is like.
    """
    asked, now = supposition.asked, supposition.now
    measured = {device.id: device for device in (*now.devices, *now.keepable)}
    known = measured.keys() | {entry.device for entry in now.left_out}
    for name in asked.drop:
        if name not in known:
            raise WrongSuppositionError(f"drop: no device {name!r} is there for this model")
    for name in asked.slow:
        if name not in measured:
            why = _why_left_out(now, name) or "no such device is there for this model"
            raise WrongSuppositionError(f"slow: {name!r} cannot be planned with: {why}")
    added = [_added(device, supposition, measured, known) for device in asked.add]
    gone = set(asked.drop)

    def as_supposed(device: DeviceSpec) -> DeviceSpec:
        return replace(device, speed=device.speed / asked.slow.get(device.id, 1.0))

    return replace(
        now,
        devices=[*(as_supposed(d) for d in now.devices if d.id not in gone), *added],
        keepable=[as_supposed(d) for d in now.keepable if d.id not in gone],
        left_out=[entry for entry in now.left_out if entry.device not in gone],
        trigger=f"supposed: {'; '.join(_texts(asked)) or 'the fog as it is'}",
        version=0,
    )


def _why_left_out(now: Question, name: str) -> str | None:
    return next((entry.reason for entry in now.left_out if entry.device == name), None)


def _added(
    device: AddedDevice,
    supposition: Supposition,
    measured: Mapping[str, DeviceSpec],
    known: set[str],
) -> DeviceSpec:
    """Return a device that is supposed to join, with the times of what it is like."""
    try:
        check_level(device.id)
    except ValueError as error:
        raise WrongSuppositionError(f"add: {error}") from error
    if device.id in known:
        raise WrongSuppositionError(f"add: there is a device {device.id!r} already")
    if device.like in measured:
        return replace(measured[device.like], id=device.id)
    catalogue = load_devices().devices
    kind = catalogue.get(device.like)
    if kind is None:
        raise WrongSuppositionError(
            f"add: no device {device.like!r}, neither in the fog nor in the catalogue, which has "
            f"{', '.join(catalogue)}"
        )
    now, manifest = supposition.now, supposition.manifest
    try:
        shape = CatalogueModel.of_config(manifest.name, parse_config(manifest.config))
        spec = kind.without_host_memory().spec(
            device.id,
            shape,
            WeightFormat(manifest.weights),
            manifest.kv_format,
            now.workload.chunk_tokens,
        )
    except ValueError as error:
        raise WrongSuppositionError(
            f"add: data sheets cannot time the model {manifest.name}: {error}"
        ) from error
    overhead = max((each.hop_overhead_seconds for each in measured.values()), default=0.0)
    return replace(spec, hop_overhead_seconds=overhead)


def _texts(asked: WhatIf) -> list[str]:
    return [
        *(f"{name} is gone" for name in asked.drop),
        *(f"{name} takes {factor:g} times as long" for name, factor in asked.slow.items()),
        *(f"{device.id} (like {device.like}) joins" for device in asked.add),
    ]


def _planned(asked: WhatIf, now: Question, changed: Question, found: Proposal) -> WhatIfAnswer:
    plan, record = found.plan, found.record
    measured = {device.id for device in (*now.devices, *now.keepable)}
    return WhatIfAnswer(
        request_id=asked.request_id,
        finding=Finding.PLANNED,
        reason=record.reason,
        plan=plan,
        keeps_replicas=record.outcome == "kept",
        before=_before(now),
        moves=_moves(changed, plan),
        considered=record.considered,
        by_data_sheet=[each.id for each in asked.add if each.like not in measured],
    )


def _before(now: Question) -> Rates | None:
    """Return what the running plan is predicted to do with the devices of now."""
    if now.running is None:
        return None
    devices = [*now.devices, *now.keepable]
    found = reassess(now.running, devices, now.model, now.workload, now.objective)
    return None if found is None else found.plan.predicted


def _moves(changed: Question, plan: Plan) -> list[Move]:
    """Return what each device would load that holds less now, the most first."""
    held = Holdings(changed.model, {})
    if changed.running is not None:
        held = Holdings.of(changed.running, changed.model)
    links = {d.id: d.link.bytes_per_second for d in (*changed.devices, *changed.keepable)}
    moves = [
        Move(device=device, num_bytes=num_bytes, seconds=num_bytes / links[device])
        for device, num_bytes in held.lacking(plan).items()
        if num_bytes
    ]
    return sorted(moves, key=lambda move: (-move.num_bytes, move.device))
