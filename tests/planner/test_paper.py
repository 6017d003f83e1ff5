"""The paper's plans under the calibrated profile, and the data that they are compared with."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from itertools import product
from math import inf
from pathlib import Path

import pytest

from broker.plan import Role
from planner.model import InfeasiblePlanError
from planner.paper import (
    CalibrationError,
    PaperWorkload,
    Policy,
    Reading,
    best_plan,
    compare,
    compare_groups,
    evolved_plan,
    load_calibration,
    load_published,
    paper_fog,
)
from planner.paper.calibration import CALIBRATION_FILE, parse_calibration
from planner.paper.entries import plan_entries
from planner.paper.plans import fog_under
from planner.paper.splitwise import SplitwiseRule, rule_slack
from planner.performance import Member
from planner.sourced import UnsourcedNumberError

PAIRS = [(workload, policy) for workload in PaperWorkload for policy in Policy]


def partitions(devices: list[int]) -> Iterator[list[list[int]]]:
    """Yield every partition of a list into groups."""
    if not devices:
        yield []
        return
    first, *rest = devices
    for partition in partitions(rest):
        yield [[first], *partition]
        for index, group in enumerate(partition):
            yield [*partition[:index], [first, *group], *partition[index + 1 :]]


# --- data ---------------------------------------------------------------------------------


def test_every_published_plan_uses_each_device_once_and_holds_the_model_in_every_replica() -> None:
    published = load_published()
    assert [(p.workload, p.policy) for p in published.plans] == [
        (w, p) for w in PaperWorkload for p in reversed(Policy)
    ]
    for plan in published.plans:
        devices = [device for replica in plan.replicas for device in replica.devices]
        assert sorted(devices) == [f"dev{i}" for i in range(1, 8)]
        assert {sum(s.num_blocks for s in r.stages) for r in plan.replicas} == {24}
    assert [p.decoder_slots for p in published.plans] == [17, 22, 16, 18]


def test_the_published_tables_have_sixteen_cells_with_the_known_reductions() -> None:
    published = load_published()
    assert len({(r.workload, r.period_seconds, r.policy) for r in published.results}) == 16
    reductions = [
        round(100 * published.waiting_reduction(workload, period), 1)
        for workload in PaperWorkload
        for period in published.periods_seconds
    ]
    assert reductions == [60.7, 64.0, 94.5, 79.5, 32.3, 52.5, 42.0, 67.9]
    # One misprint, kept as printed.
    assert sum(r.waiting.p90 > r.waiting.p99 for r in published.results) == 1


def test_the_calibration_states_a_source_for_every_number() -> None:
    numbers = load_calibration().numbers
    assert len(numbers) > 40
    assert {str(number.source) for number in numbers} == {"paper", "derived", "assumed", "fitted"}
    # What is neither printed nor fitted says how it came about.
    for number in numbers:
        assert number.note or number.source in ("paper", "fitted"), number


@pytest.mark.parametrize(
    ("line", "broken", "message"),
    [
        ("hop_milliseconds = {", "hop_milliseconds_ = {", "hop_milliseconds is missing"),
        ('{ value = 3.95, source = "fitted" }', "3.95", "network.hop_milliseconds needs a number"),
        ('3.95, source = "fitted"', '3.95, source = "rumour"', "hop_milliseconds needs a source"),
        ("value = 12.5,", "value = -12.5,", "dev1.usable_gigabytes must not be negative"),
        ('ids = ["dev1"]', 'ids = ["dev2"]', "each once"),
        ("[network]", "[network", "calibration.toml"),
    ],
)
def test_a_broken_calibration_is_refused_by_the_name_of_the_number(
    tmp_path: Path, line: str, broken: str, message: str
) -> None:
    text = CALIBRATION_FILE.read_text(encoding="utf-8")
    assert line in text
    path = tmp_path / "calibration.toml"
    path.write_text(text.replace(line, broken, 1), encoding="utf-8")
    with pytest.raises((CalibrationError, UnsourcedNumberError), match=message):
        load_calibration(path)


def test_the_cost_tables_are_the_lines_of_the_calibration() -> None:
    fog = paper_fog(PaperWorkload.EXTENDED)
    (alone,) = fog.stages([fog.index("dev5")], [24], [0])
    for rows in range(1, 17):
        expected = 24 * (0.078 + 0.496 * rows) + 0.16
        assert alone.decode_seconds[rows - 1] == pytest.approx(expected / 1e3)
    assert 576 / alone.prefill_seconds == pytest.approx(694.4, abs=0.1)
    pair = fog.stages([fog.index("dev1"), fog.index("dev4")], [17, 7], [4, 1])
    hop = 3.95 + 0.78 * 5
    master = 17 * (0.022 + 0.223 * 5) + 4 * (0.02 + 0.25 * 5) + 0.81 + hop
    second = 7 * (0.252 + 0.453 * 5) + 1 * (0.05 + 0.85 * 5) + hop
    assert pair[0].decode_seconds[4] == pytest.approx(master / 1e3)
    assert pair[1].decode_seconds[4] == pytest.approx(second / 1e3)
    assert pair[1].prefill_seconds == pytest.approx(576 * (7 * 0.9 / 24 + 0.317) / 1e3)


def test_the_memory_of_the_calibration_gives_the_published_offload_counts() -> None:
    calibration = load_calibration()
    model = calibration.model
    memory = {device.id: device.memory_bytes for device in calibration.devices}
    for plan in load_published().plans:
        for replica in plan.replicas:
            for index, (device, blocks, printed) in enumerate(replica.stages):
                size = blocks * model.block_bytes[0] + (model.head_bytes if index == 0 else 0)
                excess = max(size - memory[device], 0)
                assert -(-excess // model.ffn_bytes[0]) == printed, (device, blocks)


# --- groups and plans ---------------------------------------------------------------------


def test_at_least_seven_of_eight_published_groups_get_their_slots_and_the_other_nearly() -> None:
    groups = compare_groups()
    assert len(groups) == 8
    assert all(group.literal_slots == group.published.slots for group in groups)
    others = [group for group in groups if group.slots != group.published.slots]
    assert len(others) <= 1
    assert all(0 < group.miss < 0.03 for group in others)


@pytest.mark.parametrize("workload", PaperWorkload)
def test_the_optimum_for_e2llm_is_the_published_plan(workload: PaperWorkload) -> None:
    found = compare(workload, Policy.E2LLM)
    assert found.is_published
    assert found.best.decoder_slots == {"extended": 22, "custom": 18}[workload]
    assert found.best.objective_seconds <= found.literal.objective_seconds * (1 + 1e-9)
    assert not found.best.idle


@pytest.mark.parametrize("reading", Reading)
@pytest.mark.parametrize("workload", PaperWorkload)
def test_adapted_splitwise_is_no_worse_than_published_and_keeps_its_rule(
    workload: PaperWorkload, reading: Reading
) -> None:
    found = compare(workload, Policy.ADAPTED_SPLITWISE, reading)
    assert found.best.rule_slack >= -1e-9
    low, high = {"extended": (16, 20), "custom": (16, 19)}[workload]
    assert low <= found.best.decoder_slots <= high
    if found.regrouped.rule_slack >= -1e-9:
        assert found.best.objective_seconds <= found.regrouped.objective_seconds
    ours = best_plan(workload, Policy.E2LLM, reading)
    assert ours.objective_seconds <= found.best.objective_seconds


@pytest.mark.parametrize("workload", PaperWorkload)
def test_the_published_splitwise_plans_keep_their_rule_in_the_default_reading(
    workload: PaperWorkload,
) -> None:
    found = compare(workload, Policy.ADAPTED_SPLITWISE)
    assert found.literal.rule_slack > 0
    assert found.best.objective_seconds < found.literal.objective_seconds


@pytest.mark.parametrize(("workload", "policy"), PAIRS)
def test_the_optimum_equals_a_search_written_on_its_own(
    workload: PaperWorkload, policy: Policy
) -> None:
    fog = paper_fog(workload)
    means = fog.workload
    best, num_partitions = inf, 0
    for partition in partitions(list(range(7))):
        num_partitions += 1
        options = [fog.options(sum(1 << d for d in group)) for group in partition]
        worth = [(o.prefill.prefill_rate, o.decode) for o in options if o is not None]
        for chosen in product((True, False), repeat=len(worth)):
            prefill = [ps for (ps, _), role in zip(worth, chosen, strict=True) if role]
            decode = [d for (_, d), role in zip(worth, chosen, strict=True) if not role]
            if not prefill or not decode or not all(d.keeps_min_tps for d in decode):
                continue
            fastest = max(d.prefill_rate for d in decode)
            if policy is Policy.ADAPTED_SPLITWISE and min(prefill) < fastest * (1 - 1e-9):
                continue
            seconds = max(
                means.prompt_tokens / sum(prefill),
                means.answer_tokens / sum(d.decode_rate for d in decode),
            )
            best = min(best, seconds)
    assert num_partitions == 877
    assert best_plan(workload, policy).objective_seconds == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(("workload", "policy"), PAIRS)
def test_the_genetic_algorithm_finds_the_optimum(workload: PaperWorkload, policy: Policy) -> None:
    exact = best_plan(workload, policy).objective_seconds
    evolved = evolved_plan(workload, policy, seed=3)
    assert evolved.objective_seconds == pytest.approx(exact, rel=1e-9)


def test_equal_devices_may_prefill_and_decode_under_the_splitwise_rule() -> None:
    fog = paper_fog(PaperWorkload.CUSTOM)
    one, other = (fog.options(fog.group([device])) for device in ("dev5", "dev6"))
    assert one is not None
    assert other is not None
    members = [Member(Role.PREFILL, one.prefill), Member(Role.DECODE, other.decode)]
    assert rule_slack(fog, members) == pytest.approx(0.0)
    assert SplitwiseRule(fog)(members)
    orin = fog.options(fog.group(["dev7"]))
    assert orin is not None
    assert not SplitwiseRule(fog)([Member(Role.PREFILL, orin.prefill), members[1]])


def test_a_calibration_under_which_a_published_group_is_impossible_is_said_to_be_so() -> None:
    document = tomllib.loads(CALIBRATION_FILE.read_text(encoding="utf-8"))
    (macs,) = (table for table in document["devices"] if table["ids"] == ["dev2", "dev3"])
    macs["usable_gigabytes"]["value"] = 8
    fog = fog_under(parse_calibration(document, "changed"), PaperWorkload.EXTENDED)
    with pytest.raises(InfeasiblePlanError, match="dev3, dev2 cannot hold the model"):
        compare(PaperWorkload.EXTENDED, Policy.E2LLM, fog=fog)


def test_slots_are_the_most_that_keep_fifteen_tokens_per_second() -> None:
    for workload, policy in PAIRS:
        for replica in best_plan(workload, policy).replicas:
            if replica.role is not Role.DECODE:
                continue
            assert replica.tokens_per_second(replica.slots) >= 15 * (1 - 1e-9)
            if replica.slots < 16:
                assert replica.tokens_per_second(replica.slots + 1) < 15
            assert replica.decode_tokens_per_second == pytest.approx(
                replica.slots * replica.tokens_per_second(replica.slots)
            )


def test_plans_as_json_name_objective_slots_and_masters() -> None:
    (entry,) = plan_entries([compare(PaperWorkload.CUSTOM, Policy.E2LLM)])
    assert (entry["workload"], entry["policy"], entry["decoder_slots"]) == ("custom", "e2llm", 18)
    assert entry["objective"] <= entry["published_plan_objective"] * (1 + 1e-9)
    for replica in entry["replicas"]:
        assert [stage["master"] for stage in replica["stages"]].count(True) == 1
        assert sum(stage["blocks"] for stage in replica["stages"]) == 24
