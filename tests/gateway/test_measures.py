import msgspec.structs
import pytest

from broker.grouping import best_grouping, interpolate
from broker.plan import BatchSeconds, Rates, Replica
from gateway.measures import (
    FACTOR_LIMITS,
    FEWEST_LENGTHS,
    LENGTHS_SECONDS,
    Measures,
    hop_excess_seconds,
    predicted_ttft_seconds,
)
from tests.gateway.scripted_fog import replica

R = replica("r", ["a"], tpot_seconds=0.1, prefill_rate=100.0)
TWO = replica("two", ["a", "b"])


def test_without_samples_predictions_hold_and_nothing_is_claimed() -> None:
    measures = Measures()

    body = measures.body([R], now=0.0)

    assert measures.prefill_factor("r") == measures.step_factor("r") == 1.0
    assert body["ttft_seconds"] is None
    assert body["decode_tokens_per_second"] is None
    assert set(body["replicas"]["r"].values()) == {None}
    assert measures.lengths(0.0) is None


def test_steps_are_measured_over_predicted() -> None:
    measures = Measures()

    measures.prefilled(R, num_tokens=100, seconds=2.0)
    measures.decoded(R, num_steps=10, seconds=3.0, num_rows=1)

    assert measures.step_factor("r") == pytest.approx(3.0)
    assert measures.body([R], 0.0)["replicas"]["r"] == {
        "prefill_tokens_per_second": pytest.approx(50.0),
        "tpot_seconds": pytest.approx(0.3),
        "ttft_error": None,
        "tpot_error": pytest.approx(2.0),
    }


def test_short_prompts_measure_the_overhead_and_not_the_rate() -> None:
    measures = Measures()

    for _ in range(20):
        measures.prefilled(R, num_tokens=10, seconds=0.6)  # Predicted: 0.1 s.

    assert measures.prefill_overhead_seconds("r") == pytest.approx(0.5)
    assert measures.prefill_factor("r") == pytest.approx(1.0)


def test_prompts_of_many_lengths_measure_overhead_and_rate() -> None:
    measures = Measures()

    for num_tokens in [10, 1000, 50, 2000, 300] * 6:
        measures.prefilled(R, num_tokens, seconds=0.4 + num_tokens * 0.03)

    assert measures.prefill_factor("r") == pytest.approx(3.0, rel=0.05)
    assert measures.prefill_overhead_seconds("r") == pytest.approx(0.4, abs=1.0)


def test_a_replica_that_is_faster_than_predicted_has_no_overhead() -> None:
    measures = Measures()

    for _ in range(20):
        measures.prefilled(R, num_tokens=1000, seconds=5.0)  # Predicted: 10 s.

    assert measures.prefill_factor("r") == pytest.approx(0.5)
    assert measures.prefill_overhead_seconds("r") == pytest.approx(0.0)


def test_one_odd_sample_does_not_rule_a_replica_out() -> None:
    measures = Measures()

    measures.decoded(R, num_steps=1, seconds=3600.0, num_rows=1)
    assert measures.step_factor("r") == FACTOR_LIMITS[1]
    for _ in range(20):
        measures.decoded(R, num_steps=10, seconds=1.0, num_rows=1)

    assert measures.step_factor("r") == pytest.approx(1.0, abs=0.1)


def test_rates_are_of_the_last_minute() -> None:
    measures = Measures(window_seconds=60)
    for token in range(200):
        measures.token(float(token))
    for second in (190.0, 194.0, 198.0):
        measures.finished(5, 20, second)

    body = measures.body([R], now=199.0)
    late = measures.body([R], now=1000.0)

    assert body["window_seconds"] == 60
    assert body["decode_tokens_per_second"] == pytest.approx(1.0)
    assert body["requests_per_second"] == pytest.approx(0.25)
    assert late["decode_tokens_per_second"] is None


def test_ttft_is_the_median_and_answers_have_a_mean_length() -> None:
    measures = Measures()
    for seconds in (0.1, 0.2, 9.0):
        measures.first_token(seconds)
    for _ in range(100):
        measures.finished(5, 10, 0.0)

    assert measures.body([], 0.0)["ttft_seconds"] == 0.2
    assert measures.answer_tokens == pytest.approx(10, abs=0.1)


def test_lengths_are_means_of_recent_requests_once_there_are_enough() -> None:
    measures = Measures()

    for index in range(FEWEST_LENGTHS):
        assert measures.lengths(100.0) is None
        measures.finished(30 if index % 2 else 10, 4, 100.0)

    found = measures.lengths(100.0)
    assert found is not None
    assert (found.num_requests, found.prompt_tokens, found.answer_tokens) == (20, 20.0, 4.0)
    assert measures.lengths(100.0 + LENGTHS_SECONDS + 1) is None


def test_a_prompt_is_compared_with_what_is_predicted_for_its_length() -> None:
    measures = Measures()
    stages = [msgspec.structs.replace(stage, hop_seconds=0.1) for stage in TWO.stages]
    predicted = Rates(ttft_seconds=1.1)
    known = msgspec.structs.replace(TWO, stages=stages, predicted=predicted)

    # Planned for 100 tokens: 0.1 s of hops and 10 ms for each token.
    measures.prefilled(known, 50, 0.9, planned_tokens=100)

    assert measures.body([known], 0.0)["replicas"]["two"]["ttft_error"] == pytest.approx(0.5)
    assert predicted_ttft_seconds(known, 50, 0) is None
    assert predicted_ttft_seconds(R, 50, 100) is None


def ring(*seconds: float, hop_seconds: float = 0.001) -> Replica:
    """A replica whose stages take so long for one row, and a tenth more for each further one."""
    plain = replica("ring", [f"d{index}" for index in range(len(seconds))])
    stages = [
        msgspec.structs.replace(
            stage,
            hop_seconds=hop_seconds,
            decode_seconds=[BatchSeconds(1, each), BatchSeconds(11, 2 * each)],
        )
        for stage, each in zip(plain.stages, seconds, strict=True)
    ]
    return msgspec.structs.replace(plain, stages=stages)


@pytest.mark.parametrize("num_rows", [1, 2, 5])
@pytest.mark.parametrize("excess", [0.004, 0.0005, -0.0004])
def test_what_a_step_takes_longer_than_planned_is_told_of_its_hops(
    num_rows: int, excess: float
) -> None:
    known = ring(0.01, 0.002, 0.003)
    grouping = best_grouping(known.stages, num_rows)
    slower = ring(0.01, 0.002, 0.003, hop_seconds=0.001 + excess)
    times = [interpolate(stage.decode_seconds, grouping.group_rows) for stage in slower.stages]
    way = sum(times) + 3 * (0.001 + excess)
    step = max(way, grouping.num_groups * max(times))

    found = hop_excess_seconds(known, step, num_rows)

    # A full ring is as fast as its slowest stage, whatever hops take.
    expected = None if step > way else pytest.approx(excess)
    assert found == expected
    assert num_rows > 1 or found is not None


def test_one_device_has_no_hops() -> None:
    assert hop_excess_seconds(ring(0.01), 0.5, 1) is None
    assert hop_excess_seconds(R, 0.5, 1) is None


def test_hops_are_told_with_what_the_plan_counted_already_once_there_are_enough() -> None:
    measures = Measures()
    known = ring(0.01, 0.002)
    step = best_grouping(known.stages, 1).step_seconds + 2 * 0.003

    for _ in range(FEWEST_LENGTHS):
        assert measures.hop_overhead_seconds is None
        measures.decoded(known, 10, 10 * step, 1, planned_overhead=0.002)

    assert measures.hop_overhead_seconds == pytest.approx(0.005)


def test_steps_that_bring_several_tokens_measure_hops_by_steps_and_the_pace_by_tokens() -> None:
    measures = Measures()
    known = ring(0.01, 0.002)
    step = best_grouping(known.stages, 1).step_seconds

    for _ in range(FEWEST_LENGTHS):
        measures.decoded(known, 10, 10 * step, 1, planned_overhead=0.002, num_tokens=40)

    assert measures.hop_overhead_seconds == pytest.approx(0.002)
    assert measures.step_factor(known.id) == pytest.approx(0.25)
