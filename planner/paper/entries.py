"""The paper's evaluation beside ours as JSON values: `e2llm simulate --paper --json`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from planner.paper.errors import ErrorTerms
from planner.paper.implied import implied_waiting_seconds
from planner.paper.plans import Comparison, PaperReplica
from planner.paper.published import Published, load_published
from planner.paper.published import Summary as PublishedSummary
from planner.paper.tables import ASSUMPTIONS, CONTRADICTIONS, reductions
from planner.paper.waiting import Cell
from planner.simulation import Distribution


def evaluation(
    comparisons: Iterable[Comparison], cells: Sequence[Cell], errors: ErrorTerms
) -> dict[str, Any]:
    """Return the whole evaluation; ``cells`` with error were simulated under ``errors``."""
    return {
        "plans": plan_entries(comparisons),
        "cells": [_cell_entry(cell) for cell in cells],
        "reductions": _reduction_entries(cells),
        "contradictions": list(CONTRADICTIONS),
        "assumptions": ASSUMPTIONS,
        "error_terms": _error_entries(errors),
        "seeds": len(cells[0].runs),
    }


def plan_entries(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Return the plans as JSON values: the ``plans`` of ``e2llm simulate --paper --json``."""
    return [
        {
            "workload": str(c.best.workload),
            "policy": str(c.best.policy),
            "prefill_speed_reading": str(c.best.reading),
            "decoder_slots": c.best.decoder_slots,
            "published_decoder_slots": c.published.decoder_slots,
            "objective": c.best.objective_seconds,
            "published_plan_objective": c.literal.objective_seconds,
            "published_groups_objective": c.regrouped.objective_seconds,
            "is_published_plan": c.is_published,
            "rule_slack": c.best.rule_slack,
            "replicas": [_replica_entry(replica) for replica in c.best.replicas],
        }
        for c in comparisons
    ]


def _replica_entry(replica: PaperReplica) -> dict[str, Any]:
    return {
        "role": str(replica.role),
        "slots": replica.slots,
        "prefill_tokens_per_second": replica.prefill_tokens_per_second,
        "decode_tokens_per_second": replica.decode_tokens_per_second,
        "stages": [
            {
                "device": stage.device,
                "blocks": stage.num_blocks,
                "offloaded_ffns": stage.offloads,
                "master": index == 0,
            }
            for index, stage in enumerate(replica.stages)
        ],
    }


def _cell_entry(cell: Cell) -> dict[str, Any]:
    low, high = cell.waiting_range
    return {
        "workload": str(cell.workload),
        "period_s": cell.period_seconds,
        "policy": str(cell.policy),
        "model": str(cell.model),
        "seeds": len(cell.runs),
        "waiting_mean_s": cell.waiting_seconds,
        "waiting_p5_s": low,
        "waiting_p95_s": high,
        "published_waiting_mean_s": cell.published.waiting.mean,
        "implied_waiting_mean_s": implied_waiting_seconds(cell.published),
        "is_within_25_percent": cell.is_near,
        "is_within_p5_p95": cell.is_inside,
        "chance_within_25_percent_if_exact": cell.chance_if_exact,
        "end_to_end_mean_s": cell.end_to_end_seconds,
        "share_under_7_tokens_per_s": cell.below_seven,
        "prefill_tokens_per_s": _named(cell.prefill),
        "decode_tokens_per_s": _named(cell.decode),
        "waiting_s": _named(cell.waiting),
        "published_prefill_tokens_per_s": _named(cell.published.prefill),
        "published_decode_tokens_per_s": _named(cell.published.decode),
        "published_waiting_s": _named(cell.published.waiting),
    }


def _named(values: Distribution | PublishedSummary) -> dict[str, float]:
    return {name: getattr(values, name) for name in ("mean", "deviation", "p50", "p90", "p99")}


def _error_entries(errors: ErrorTerms) -> dict[str, float]:
    """Return the fitted error terms as JSON values, named as in `errors.toml`."""
    return {
        **{str(workload): speed for workload, speed in errors.speeds.items()},
        "three_devices": errors.three_devices,
        "offload_majority": errors.offload_majority,
        "light_load": errors.light_load,
    }


def _reduction_entries(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the reductions as JSON values."""
    published: Published = load_published()
    return [
        {
            "workload": str(workload),
            "period_s": period,
            "model": str(model),
            "reduction": share,
            "published_reduction": published.waiting_reduction(workload, period),
        }
        for model in dict.fromkeys(cell.model for cell in cells)
        for workload, period, share in reductions(cells, model)
    ]
