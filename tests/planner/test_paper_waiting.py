"""The paper's sixteen runs: what is simulated, what was fitted, and what comes out."""

import json
import tomllib
from dataclasses import replace
from itertools import product

import pytest

from planner.paper.entries import evaluation
from planner.paper.errors import ERRORS_FILE, IDEAL, ErrorTerms, load_errors
from planner.paper.implied import implied_request_seconds, implied_waiting_seconds
from planner.paper.plans import compare
from planner.paper.published import PaperWorkload, Policy, load_published
from planner.paper.tables import (
    NEAR_POINTS,
    implied_table,
    reductions,
    reductions_table,
    results_tables,
    waiting_table,
)
from planner.paper.waiting import (
    Cell,
    Model,
    finished_records,
    paper_requests,
    published_plan,
    sim_replicas,
    simulate_cell,
    simulate_paper,
)

PUBLISHED = load_published()
PAIRS = [(workload, policy) for workload, policy in product(PaperWorkload, Policy)]


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return list(simulate_paper(3, [(Model.IDEAL, IDEAL), (Model.WITH_ERROR, load_errors())]))


def test_every_error_term_is_marked_as_fitted() -> None:
    terms = tomllib.loads(ERRORS_FILE.read_text("utf-8"))["decode_speed"]

    assert len(terms) == 5
    assert {term["source"] for term in terms.values()} == {"fitted"}
    assert all(0 < term["value"] <= 1 for term in terms.values())


@pytest.mark.parametrize(("workload", "policy"), PAIRS)
def test_the_simulated_replicas_are_the_printed_ones(
    workload: PaperWorkload, policy: Policy
) -> None:
    printed = PUBLISHED.plan(workload, policy)

    replicas = sim_replicas(published_plan(workload, policy))

    assert [[s.device for s in r.stages] for r in replicas] == [
        list(r.devices) for r in printed.replicas
    ]
    decoders = [r for r in printed.replicas if r.slots]
    assert [r.slots for r in replicas if r.role == "decode"] == [r.slots for r in decoders]
    assert all(r.stages[-1].layers is not None and r.stages[-1].layers[1] == 24 for r in replicas)


def test_both_policies_and_all_periods_get_the_same_lengths() -> None:
    slow, fast = (paper_requests(PaperWorkload.CUSTOM, period, 7) for period in (3.0, 0.5))

    assert [(r.prompt_tokens, r.answer_tokens) for r in slow] == [
        (r.prompt_tokens, r.answer_tokens) for r in fast
    ]
    assert [r.arrival_seconds for r in fast] == [0.5 * index for index in range(100)]


def test_lengths_have_the_printed_means() -> None:
    for workload, means in PUBLISHED.workloads.items():
        drawn = [r for seed in range(200) for r in paper_requests(workload, 1.0, seed)]

        mean_prompt = sum(r.prompt_tokens for r in drawn) / len(drawn)
        mean_answer = sum(r.answer_tokens for r in drawn) / len(drawn)

        assert mean_prompt == pytest.approx(means.prompt_tokens, rel=0.01)
        assert mean_answer == pytest.approx(means.answer_tokens, rel=0.02)


def test_only_deep_and_offloaded_replicas_have_terms_of_their_own() -> None:
    errors = ErrorTerms(dict.fromkeys(PaperWorkload, 0.5), 0.1, 0.01)
    speeds = {
        replica.devices: errors.speed(plan.workload, replica)
        for plan in (published_plan(*pair) for pair in PAIRS)
        for replica in plan.replicas
        if replica.role == "decode"
    }

    assert speeds.pop(("dev1", "dev6", "dev2")) == pytest.approx(0.05)
    assert speeds.pop(("dev1", "dev4", "dev2")) == pytest.approx(0.05)
    assert speeds.pop(("dev4",)) == pytest.approx(0.005)
    assert set(speeds.values()) == {0.5}


def test_light_load_changes_empty_slots_alone() -> None:
    plan = published_plan(PaperWorkload.EXTENDED, Policy.E2LLM)
    half = sim_replicas(plan, replace(IDEAL, light_load=0.5))
    full = sim_replicas(plan)
    lone = next(i for i, r in enumerate(plan.replicas) if r.devices == ("dev5",))
    planned, found = full[lone].stages[0].decode_seconds, half[lone].stages[0].decode_seconds

    assert found(5, 0) == pytest.approx(planned(5, 0))
    assert 1 / found(1, 0) == pytest.approx((1 / planned(1, 0) + 1 / planned(5, 0)) / 2)


def test_a_run_waits_for_prefill_and_transfer_at_least() -> None:
    result = PUBLISHED.result(PaperWorkload.EXTENDED, 3.0, Policy.E2LLM)

    waits = [r.waiting_seconds for r in finished_records(result, IDEAL, seed=0)]

    # The shortest of a hundred prompts at 470 tokens/s, with its KV cache over 920 Mbit/s.
    assert len(waits) == 100
    assert min(waits) > 0.5


def test_a_cell_is_the_same_for_the_same_seeds() -> None:
    result = PUBLISHED.result(PaperWorkload.EXTENDED, 2.0, Policy.E2LLM)

    first, second = (simulate_cell(result, Model.IDEAL, IDEAL, range(2)) for _ in range(2))

    assert first == second
    assert first.runs[0] != first.runs[1]


def test_prefill_speeds_are_the_printed_ones(cells: list[Cell]) -> None:
    for cell in cells:
        assert cell.prefill.mean == pytest.approx(cell.published.prefill.mean, rel=0.06)


def test_decode_speeds_with_error_are_near_the_printed_ones(cells: list[Cell]) -> None:
    chosen = [cell for cell in cells if cell.model is Model.WITH_ERROR]

    assert len(chosen) == 16
    for cell in chosen:
        assert cell.decode.mean == pytest.approx(cell.published.decode.mean, rel=0.30)


def test_at_least_nine_waiting_times_are_within_a_quarter(cells: list[Cell]) -> None:
    chosen = [cell for cell in cells if cell.model is Model.WITH_ERROR]

    assert sum(cell.is_near for cell in chosen) >= 9


def test_six_of_eight_reductions_are_within_fifteen_points(cells: list[Cell]) -> None:
    found = reductions(cells, Model.WITH_ERROR)

    near = [
        abs(share - PUBLISHED.waiting_reduction(workload, period)) <= NEAR_POINTS
        for workload, period, share in found
    ]
    assert len(near) == 8
    assert sum(near) >= 6


def test_a_perfect_plan_alone_does_not_explain_the_paper(cells: list[Cell]) -> None:
    ideal = [cell for cell in cells if cell.model is Model.IDEAL]

    assert sum(cell.is_near for cell in ideal) < 9


def test_json_has_the_fields_that_others_rely_on(cells: list[Cell]) -> None:
    comparison = compare(PaperWorkload.CUSTOM, Policy.E2LLM)

    found = json.loads(json.dumps(evaluation([comparison], cells, load_errors())))

    (plan,) = found["plans"]
    assert {
        "workload",
        "policy",
        "decoder_slots",
        "objective",
        "published_plan_objective",
        "replicas",
    } <= set(plan)
    assert found["seeds"] == 3
    entries = found["cells"]
    assert {(entry["workload"], entry["policy"]) for entry in entries} == {
        (workload, policy)
        for workload in ("extended", "custom")
        for policy in ("e2llm", "adapted-splitwise")
    }
    assert {entry["period_s"] for entry in entries} == {0.5, 1.0, 2.0, 3.0}
    assert {entry["model"] for entry in entries} == {"ideal", "with-error"}
    assert len(entries) == 32
    for entry in entries:
        assert entry["waiting_p5_s"] <= entry["waiting_mean_s"] <= entry["waiting_p95_s"]
        assert entry["published_waiting_mean_s"] > 0


def test_an_exact_model_misses_cells_whose_runs_scatter(cells: list[Cell]) -> None:
    cell = replace(cells[0], runs=(10.0, 12.0, 12.0, 24.0))

    assert cell.waiting_seconds == 12.0
    assert cell.chance_if_exact == 0.75


def test_tables_have_every_cell(cells: list[Cell]) -> None:
    tables = results_tables(cells)

    assert [table.title for table in tables[:3]] == [
        "Table VII, extended: prefill speed, tokens/s",
        "Table VII, extended: decode speed, tokens/s",
        "Table VII, extended: waiting time, s",
    ]
    assert [len(table.rows) for table in tables] == [8] * 6
    assert len(waiting_table(cells, Model.IDEAL).rows) == 16
    assert len(reductions_table(cells).rows) == 8
    assert len(implied_table().rows) == 16


def test_overload_waits_for_the_backlog_that_printed_speeds_imply() -> None:
    heavy = PUBLISHED.result(PaperWorkload.CUSTOM, 0.5, Policy.E2LLM)
    light = PUBLISHED.result(PaperWorkload.EXTENDED, 3.0, Policy.E2LLM)

    # 1004 tokens over 18 slots at 15.0 tokens/s; prefill at 693.6 tokens/s is faster.
    assert implied_request_seconds(heavy) == pytest.approx(1004 / (18 * 15.0))
    backlog = 49.5 * (1004 / 270 - 0.5)
    assert implied_waiting_seconds(heavy) == pytest.approx(backlog + 2284 / 693.6 + 0.976, abs=0.01)
    # No backlog: 576 tokens at 445.6 tokens/s, and 28 MB at 920 Mbit/s.
    assert implied_waiting_seconds(light) == pytest.approx(576 / 445.6 + 0.246, abs=0.001)
