"""Predicted beside measured."""

import msgspec.structs
import pytest

from broker.plan import BatchSeconds, Plan, Rates, Role
from broker.telemetry import Reading, Telemetry
from gateway.comparison import decode_seconds, error
from gateway.report import plan_body
from tests.gateway.scripted_fog import plan, replica, view_of


def served(role: Role, telemetry: Telemetry) -> dict[str, object]:
    """The measured part of the first of two stages, planned for prompts of 100 tokens."""
    two = replica("two", ["a", "b"], role)
    known = [BatchSeconds(1, 0.010), BatchSeconds(4, 0.016)]
    stages = [msgspec.structs.replace(stage, decode_seconds=known) for stage in two.stages]
    two = msgspec.structs.replace(two, stages=stages)
    view = view_of(two).with_plan(msgspec.structs.replace(plan(two, version=2), prompt_tokens=100))
    view = view.with_telemetry("a", Reading(telemetry), 0.0)
    first: dict[str, object] = plan_body(view, {})["replicas"][0]["stages"][0]["measured"]
    return first


def test_a_decode_step_is_compared_with_the_prediction_for_its_rows() -> None:
    telemetry = Telemetry(stage_seconds={"two": 0.018}, stage_rows={"two": 2.0})
    assert served(Role.DECODE, telemetry) == {
        "decode": {
            "rows": 2.0,
            "predicted_seconds": pytest.approx(0.012),
            "measured_seconds": 0.018,
            "error": pytest.approx(0.5),
        },
        "prefill": None,
    }


def test_a_token_of_a_prompt_is_compared_in_a_prefill_replica_only() -> None:
    telemetry = Telemetry(prefill_token_seconds={"two": 0.0002})
    found = served(Role.PREFILL, telemetry)
    assert found["prefill"] == {
        "prompt_tokens": 100,
        "predicted_seconds": pytest.approx(0.00025),
        "measured_seconds": 0.0002,
        "error": pytest.approx(-0.2),
    }
    assert served(Role.BOTH, telemetry)["prefill"] is None


def test_prompts_shorter_than_planned_do_not_count_as_an_error_of_the_plan() -> None:
    one = replica("one", ["a"], Role.PREFILL)
    view = view_of(one).with_plan(msgspec.structs.replace(plan(one, version=2), prompt_tokens=100))
    view = view.with_telemetry("a", Reading(Telemetry(prefill_token_seconds={"one": 9.0})), 0.0)
    body = plan_body(view, {})
    assert body["replicas"][0]["stages"][0]["measured"]["prefill"]["error"] > 1
    assert body["errors"]["stage_seconds"] is None


def test_what_another_replica_measured_is_not_compared() -> None:
    telemetry = Telemetry(stage_seconds={"old": 0.018}, stage_rows={"old": 2.0})
    assert served(Role.DECODE, telemetry) == {"decode": None, "prefill": None}


@pytest.mark.parametrize(("rows", "seconds"), [(0.5, 0.01), (1, 0.01), (2.5, 0.013), (9, 0.016)])
def test_rows_between_predictions_are_on_a_line(rows: float, seconds: float) -> None:
    stage = replica("r", ["a"]).stages[0]
    assert decode_seconds(stage, rows) is None
    known = [BatchSeconds(1, 0.010), BatchSeconds(4, 0.016)]
    stage = msgspec.structs.replace(stage, decode_seconds=known)
    assert decode_seconds(stage, rows) == pytest.approx(seconds)


def test_an_error_needs_both_values() -> None:
    assert error(1.2, 1.0) == pytest.approx(0.2)
    assert error(None, 1.0) is error(1.0, None) is error(1.0, 0.0) is None


def rated() -> Plan:
    one = replica("one", ["a"])
    return msgspec.structs.replace(plan(one), predicted=Rates(requests_per_second=2.0))


def test_the_errors_of_a_plan_are_medians_and_means_of_what_is_known() -> None:
    measured = {
        "requests_per_second": 1.0,
        "is_full": True,
        "replicas": {
            "one": {"ttft_error": 0.1, "tpot_error": None},
            "two": {"ttft_error": 0.3, "tpot_error": -0.1},
        },
    }
    body = plan_body(view_of(replica("one", ["a"])).with_plan(rated()), measured)
    assert body["errors"] == {
        "stage_seconds": None,
        "ttft_seconds": pytest.approx(0.2),
        "tpot_seconds": pytest.approx(-0.1),
        "requests_per_second": pytest.approx(-0.5),
    }


def test_a_rate_is_no_error_while_nobody_waits() -> None:
    measured = {"requests_per_second": 0.1, "is_full": False}
    body = plan_body(view_of(replica("one", ["a"])).with_plan(rated()), measured)
    assert body["errors"]["requests_per_second"] is None
