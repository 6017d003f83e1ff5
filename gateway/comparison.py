"""Predicted beside measured: how far the plan is off, stage by stage. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from broker.grouping import interpolate
from broker.plan import Plan, Replica, Role, Stage
from broker.telemetry import Telemetry


def error(measured: float | None, predicted: float | None) -> float | None:
    """Return by what share the measured value is larger; None when one is not known."""
    if measured is None or not predicted:
        return None
    return measured / predicted - 1


def decode_seconds(stage: Stage, rows: float) -> float | None:
    """Return the predicted seconds of a stage's decode step with so many rows on average."""
    known = stage.decode_seconds
    # More rows than the plan allows are compared with the most that it predicts.
    return interpolate(known, min(rows, known[-1].batch)) if known else None


def stage_body(
    plan: Plan, replica: Replica, stage: Stage, telemetry: Telemetry | None
) -> dict[str, Any]:
    """Return what a stage's device measured lately, with the prediction for the same.

    ``decode`` is about one step with the mean rows of the measured ones, ``prefill`` about
    one token: of the prompts that came, and of one with the ``prompt_tokens`` of the plan. What
    a stage does once for a prompt weighs more in a shorter one, so that its tokens take longer
    than predicted for no fault of the prediction. Each is None where nothing ran, or nothing was
    predicted.
    """
    if telemetry is None:
        return {"decode": None, "prefill": None}
    return {
        "decode": _decode_body(replica, stage, telemetry),
        "prefill": _prefill_body(plan, replica, stage, telemetry),
    }


def _decode_body(replica: Replica, stage: Stage, telemetry: Telemetry) -> dict[str, Any] | None:
    measured = (telemetry.stage_seconds or {}).get(replica.id)
    rows = (telemetry.stage_rows or {}).get(replica.id)
    if measured is None or rows is None:
        return None
    predicted = decode_seconds(stage, rows)
    return {
        "rows": rows,
        "predicted_seconds": predicted,
        "measured_seconds": measured,
        "error": error(measured, predicted),
    }


def _prefill_body(
    plan: Plan, replica: Replica, stage: Stage, telemetry: Telemetry
) -> dict[str, Any] | None:
    measured = (telemetry.prefill_token_seconds or {}).get(replica.id)
    if measured is None or replica.role is not Role.PREFILL or not plan.prompt_tokens:
        return None
    # A prefill stage is predicted for a whole prompt of the planned length.
    predicted = stage.predicted_seconds / plan.prompt_tokens
    return {
        "prompt_tokens": plan.prompt_tokens,
        "predicted_seconds": predicted,
        "measured_seconds": measured,
        "error": error(measured, predicted),
    }


def errors_body(
    plan: Plan, replicas: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]
) -> dict[str, float | None]:
    """Return the error of each kind of prediction, of stage times the median.

    Stages count with their decode steps, which are compared with predictions for as many rows;
    not with prompts, whose lengths differ from the plan's (`stage_body`).

    Args:
        plan: The plan that serves.
        replicas: The bodies of its replicas.
        measured: What this gateway's requests experienced (`gateway.measures`).
    """
    stages = [
        abs(decode["error"])
        for replica in replicas
        for stage in replica["stages"]
        if (decode := stage["measured"]["decode"]) is not None and decode["error"] is not None
    ]
    served = measured.get("replicas") or {}

    def mean(name: str) -> float | None:
        found = [each[name] for each in served.values() if each.get(name) is not None]
        return sum(found) / len(found) if found else None

    full = measured.get("requests_per_second") if measured.get("is_full") else None
    return {
        "stage_seconds": median(stages) if stages else None,
        "ttft_seconds": mean("ttft_error"),
        "tpot_seconds": mean("tpot_error"),
        "requests_per_second": error(full, plan.predicted.requests_per_second),
    }
