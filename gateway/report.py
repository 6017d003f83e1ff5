"""What ``GET /fog/plan``, ``GET /fog/devices`` and ``GET /readyz`` say. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from broker.control import DeviceState, ModelManifest
from broker.identity import identity
from broker.plan import Loaded, LoadState, Plan, Replica
from gateway.comparison import errors_body, stage_body
from gateway.fogview import DeviceView, FogView
from gateway.requests import Readiness


def plan_body(view: FogView, measured: dict[str, Any]) -> dict[str, Any]:
    """Return the body of ``GET /fog/plan``: the active plan, or the one in preparation.

    Of several models it has the one for requests that name none; the others are in ``others``.
    Before any plan it has the same keys, with nothing in them and ``state`` ``"none"``.
    """
    plan = view.serving or view.active or view.preparing
    replicas = [] if plan is None else [_replica_body(view, plan, r) for r in plan.replicas]
    preparing = view.preparing
    body: dict[str, Any] = {
        "version": plan.version if plan is not None else None,
        "state": plan.state.value if plan is not None else "none",
        "model": plan.model if plan is not None else None,
        "weights": plan.weights if plan is not None else None,
        "replicas": [],
        "idle": [],
        "predicted": {},
        "measured": measured,
        "arithmetic": list(view.arithmetics),
        "arithmetic_problem": view.arithmetic_problem,
        "errors": {} if plan is None else errors_body(plan, replicas, measured),
        "best_single_device": None,
        "reasons": {},
        "optimality": "",
        "trigger": "",
        "preparing": None,
        "others": [] if plan is None else _others_body(view, plan),
        "refused_fields": 0 if view.planner is None else view.planner.refused_fields,
    }
    if plan is not None:
        single = plan.best_single_device
        body |= {
            "revision": plan.revision,
            "kv_format": plan.kv_format,
            "kv_transfer": plan.kv_transfer,
            "chunk_tokens": plan.chunk_tokens,
            "context_tokens": plan.context_tokens,
            "prompt_tokens": plan.prompt_tokens,
            "answer_tokens": plan.answer_tokens,
            "speeds": plan.speeds,
            "hop_overhead_seconds": plan.hop_overhead_seconds,
            "replicas": replicas,
            "idle": [{"device": idle.device, "reason": idle.reason} for idle in plan.idle],
            "predicted": msgspec.to_builtins(plan.predicted),
            "best_single_device": None
            if single is None
            else {"device": single.device, "predicted": msgspec.to_builtins(single.predicted)},
            "reasons": plan.reasons,
            "optimality": plan.optimality,
            "trigger": plan.trigger,
        }
    if preparing is not None:
        body["preparing"] = {
            "version": preparing.version,
            "model": preparing.model,
            "trigger": preparing.trigger,
            "progress": load_progress(view, preparing),
        }
    return body


def _others_body(view: FogView, plan: Plan) -> list[dict[str, Any]]:
    """Return the plans beside ``plan``, for other models."""
    parts = view.active.parts if view.active is not None else []
    return [
        {
            "model": part.model,
            "revision": part.revision,
            "weights": part.weights,
            "leaving": part.is_leaving,
            "replicas": [_replica_body(view, part, replica) for replica in part.replicas],
            "predicted": msgspec.to_builtins(part.predicted),
        }
        for part in parts
        if identity(part) != identity(plan)
    ]


def model_state(view: FogView, manifest: ModelManifest, num_unfinished: int) -> dict[str, Any]:
    """Return how far the fog is with a model that is published: state, why, progress 0..1."""
    active = None if view.active is None else view.active.part_for(manifest)
    coming = None if view.preparing is None else view.preparing.part_for(manifest)
    progress: float | None = None
    if active is not None and active.is_leaving:
        state, detail = "leaving", f"{num_unfinished} requests have not ended"
    elif active is not None and any(view.is_complete(replica) for replica in active.replicas):
        state, detail = "serving", f"{len(active.replicas)} replicas"
    elif coming is not None and view.preparing is not None:
        state, detail = "loading", f"devices load plan {view.preparing.version}"
        progress = load_progress(view, view.preparing)
    elif manifest.in_use:
        problem = view.planner.problem if view.planner is not None else None
        state, detail = "waiting", problem or "waiting for a plan"
    else:
        ready = [device for device in view.devices.values() if device.is_ready]
        measured = [device for device in ready if _has_measured(device, manifest)]
        state, detail = "added", f"{len(measured)} of {len(ready)} devices have measured it"
        progress = len(measured) / len(ready) if ready else None
    return {"state": state, "detail": detail, "progress": progress, "unfinished": num_unfinished}


def devices_body(view: FogView, now: float) -> list[dict[str, Any]]:
    """Return the body of ``GET /fog/devices``, in the order of names."""
    shown = sorted(name for name, device in view.devices.items() if not device.is_removed)
    return [_device_body(view.devices[name], now) for name in shown]


def load_progress(view: FogView, plan: Plan) -> float | None:
    """Return the share of bytes in memory on the devices of ``plan``; None: none reported."""
    names = {stage.device for replica in plan.all_replicas for stage in replica.stages}
    reports = [
        device.loaded
        for name in names
        if (device := view.devices.get(name)) is not None and device.loaded is not None
    ]
    total = sum(report.total_bytes for report in reports)
    if not total:
        return None
    return min(sum(report.loaded_bytes for report in reports) / total, 1.0)


def readiness(view: FogView, bus_problem: str | None, details: dict[str, Any]) -> Readiness:
    """Say whether a request can be served now and, if not, the first thing in its way.

    Args:
        view: What is known of the fog.
        bus_problem: Why there is no connection to the broker, or None.
        details: Figures to which this adds those of the fog.
    """
    planner = view.planner
    details = {
        **details,
        "plan_version": view.active.version if view.active is not None else None,
        "planner": planner.state.value if planner is not None else "unknown",
        "planner_problem": planner.problem if planner is not None else None,
        "planner_redis": planner.redis if planner is not None else None,
        "devices": {
            state.value: sum(
                device.status is not None and device.status.state is state
                for device in view.devices.values()
            )
            for state in DeviceState
        },
        "load_errors": _load_errors(view),
        "loading": {
            name: _load_body(device.loaded)
            for name, device in sorted(view.devices.items())
            if device.is_ready
            and device.loaded is not None
            and device.loaded.state is LoadState.LOADING
        },
    }
    if bus_problem is not None:
        return Readiness(False, bus_problem, None, details)
    if view.complete_replicas:
        return Readiness(True, "ready", None, details)
    reason, progress = _obstacle(view)
    return Readiness(False, reason, progress, details)


def _obstacle(view: FogView) -> tuple[str, float | None]:
    """Return why no replica is complete, the most useful reason first, and the progress."""
    if view.model is None:
        return "no model is published yet", None
    errors = _load_errors(view)
    if errors:
        device, error = next(iter(errors.items()))
        return f"device {device} cannot load its layers: {error}", None
    planner = view.planner
    if planner is not None and planner.problem is not None:
        return f"planner: {planner.problem}", None
    if view.preparing is not None:
        progress = load_progress(view, view.preparing)
        return f"nodes load the layers of plan {view.preparing.version}", progress
    ready = [device for device in view.devices.values() if device.is_ready]
    if view.serving is not None:
        return _incomplete(view), load_progress(view, view.serving)
    if not ready:
        return "no device is connected", None
    measuring = [device for device in ready if _is_measuring(device, view)]
    if measuring:
        names = ", ".join(sorted(device.id for device in measuring))
        return f"devices measure themselves: {names}", 1 - len(measuring) / len(ready)
    if planner is None or planner.state is not DeviceState.READY:
        return "no planner is connected", None
    if view.active is not None:
        return "the plan is for another model; waiting for a new one", None
    return "the planner has not published a plan yet", None


def _incomplete(view: FogView) -> str:
    absent = view.absent_devices()
    if absent:
        return f"no replica is complete; devices that do not answer: {', '.join(absent)}"
    loading = sorted(
        {
            stage.device
            for replica in view.replicas
            for index, stage in enumerate(replica.stages)
            if not view.devices[stage.device].holds(f"{replica.id}/{index}")
        }
    )
    if not loading:
        return "the active plan has no replica"
    return f"no replica is complete; devices that still load: {', '.join(loading)}"


def _is_measuring(device: DeviceView, view: FogView) -> bool:
    if device.loaded is not None and device.loaded.session == device.session:
        return device.loaded.state is LoadState.MEASURING
    return view.model is None or not _has_measured(device, view.model)


def _has_measured(device: DeviceView, manifest: ModelManifest) -> bool:
    profile = device.profile
    return (
        profile is not None and profile.times_for(manifest.revision, manifest.weights) is not None
    )


def _load_errors(view: FogView) -> dict[str, str]:
    """Return device to error, for devices that are here and failed in this session."""
    return {
        name: device.loaded.error or "no reason given"
        for name, device in sorted(view.devices.items())
        if device.is_ready
        and device.loaded is not None
        and device.loaded.state is LoadState.FAILED
        and device.loaded.session == device.session
    }


def _replica_body(view: FogView, plan: Plan, replica: Replica) -> dict[str, Any]:
    return {
        "id": replica.id,
        "role": replica.role.value,
        "slots": replica.slots,
        "prefill_slots": replica.prefill_slots,
        "kv_tokens": replica.kv_tokens,
        "complete": view.is_complete(replica),
        "predicted": msgspec.to_builtins(replica.predicted),
        "stages": [
            {
                "device": stage.device,
                "layers": [stage.layers.start, stage.layers.end],
                "embedding": stage.embedding,
                "head": stage.head,
                "predicted_seconds": stage.predicted_seconds,
                "measured": stage_body(plan, replica, stage, view.telemetry(stage.device)),
            }
            for stage in replica.stages
        ],
    }


def _device_body(device: DeviceView, now: float) -> dict[str, Any]:
    status, loaded, profile = device.status, device.loaded, device.profile
    return {
        "id": device.id,
        "state": status.state.value if status is not None else "unknown",
        "pid": status.pid if status is not None else None,
        "session": device.session,
        "software": status.software if status is not None else None,
        "last_seen_seconds": round(max(now - device.seen_at, 0.0), 3),
        "memory_bytes": profile.memory_bytes if profile is not None else None,
        "threads": profile.threads if profile is not None else None,
        "slowdown": profile.slowdown if profile is not None else None,
        "hardware": profile.hardware if profile is not None else None,
        "load_state": loaded.state.value if loaded is not None else None,
        "stages": loaded.stages if loaded is not None else [],
        "tensors": loaded.tensors if loaded is not None else [],
        **_load_body(loaded),
        "error": loaded.error if loaded is not None else None,
        "placement": device.control.placement.value,
        "owner": _owner_body(device),
        "refused_fields": device.refused_fields,
        "telemetry": msgspec.to_builtins(device.telemetry)
        if device.telemetry is not None
        else None,
    }


def _load_body(loaded: Loaded | None) -> dict[str, Any]:
    """Return how many bytes of how many are in memory, and where they came from."""
    loaded_bytes = loaded.loaded_bytes if loaded is not None else 0
    total_bytes = loaded.total_bytes if loaded is not None else 0
    return {
        "loaded_bytes": loaded_bytes,
        "total_bytes": total_bytes,
        "progress": min(loaded_bytes / total_bytes, 1.0) if total_bytes else None,
        "sources": msgspec.to_builtins(loaded.sources) if loaded is not None else [],
    }


def _owner_body(device: DeviceView) -> dict[str, Any] | None:
    """Return what the owner allows: as asked at a gateway, else as the device says."""
    rules = device.control.rules or (device.profile.owner if device.profile else None)
    found: dict[str, Any] | None = msgspec.to_builtins(rules)
    return found
