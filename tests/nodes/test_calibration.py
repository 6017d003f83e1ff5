"""What a computation should take, from measured points."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.control import DecodeTime, LayerTimes, PrefillTime
from nodes.calibration import Calibration, CostTable
from nodes.compute import JobCost
from planner import cost as planner_cost

BLOCK = LayerTimes(
    prefill=[PrefillTime(16, 1.0), PrefillTime(128, 4.0), PrefillTime(256, 9.0)],
    decode=[
        DecodeTime(1, 64, 1.0),
        DecodeTime(1, 512, 2.0),
        DecodeTime(4, 64, 2.5),
        DecodeTime(4, 512, 5.0),
    ],
)
EMBEDDING = LayerTimes(prefill=[PrefillTime(1, 0.5)], decode=[DecodeTime(1, 64, 0.25)])
HEAD = LayerTimes(
    prefill=[PrefillTime(1, 3.0)], decode=[DecodeTime(1, 64, 3.0), DecodeTime(2, 64, 4.0)]
)
CALIBRATION = Calibration(
    blocks={"full": BLOCK},
    embedding=EMBEDDING,
    head=HEAD,
    chunk_tokens=128,
    cpu_seconds_per_second=1.0,
)


def job(
    *,
    decode: bool,
    rows: int,
    context: int,
    layers: int = 1,
    embedding: bool = False,
    head_rows: int = 0,
) -> JobCost:
    return JobCost(decode, rows, context, ("full",) * layers, embedding, head_rows)


def test_a_step_between_measured_points_is_interpolated_in_context_and_rows() -> None:
    table = CostTable(CALIBRATION)
    middle = job(decode=True, rows=1, context=288)
    between = job(decode=True, rows=2, context=64)
    assert table.seconds(middle) == pytest.approx(1.5)
    assert table.seconds(between) == pytest.approx(1.5)


def test_a_stage_costs_its_layers_and_the_ends_that_it_has() -> None:
    step = job(decode=True, rows=2, context=64, layers=3, embedding=True, head_rows=2)
    assert CostTable(CALIBRATION).seconds(step) == pytest.approx(3 * 1.5 + 0.25 + 4.0)


def test_a_stage_with_blocks_of_two_kinds_costs_each_as_it_was_measured() -> None:
    twice = CALIBRATION.slowed(2.0).blocks["full"]
    calibration = msgspec.structs.replace(CALIBRATION, blocks={"full": BLOCK, "full-moe": twice})
    cost = JobCost(True, 1, 64, ("full", "full-moe", "full-moe"), False, 0)
    assert CostTable(calibration).seconds(cost) == pytest.approx(1.0 + 2 * 2.0)


def test_the_chunks_of_a_prompt_take_as_long_as_the_prompt() -> None:
    table = CostTable(CALIBRATION)
    chunks = [
        table.seconds(job(decode=False, rows=128, context=128)),
        table.seconds(job(decode=False, rows=128, context=256)),
    ]
    assert chunks == pytest.approx([4.0, 5.0])


def test_a_short_last_chunk_takes_no_less_than_one_row() -> None:
    last = job(decode=False, rows=1, context=129)
    assert CostTable(CALIBRATION).seconds(last) == pytest.approx(1 + 65 / 448)


def test_only_the_last_row_of_a_prompt_goes_through_the_head() -> None:
    table = CostTable(CALIBRATION)
    without = table.seconds(job(decode=False, rows=128, context=128))
    with_head = table.seconds(job(decode=False, rows=128, context=128, head_rows=1))
    assert with_head - without == pytest.approx(3.0)


def test_a_slowed_device_takes_a_multiple_of_everything() -> None:
    slowed = CostTable(CALIBRATION.slowed(4.0))
    step = job(decode=True, rows=3, context=100, layers=2, embedding=True, head_rows=3)
    assert slowed.seconds(step) == pytest.approx(4 * CostTable(CALIBRATION).seconds(step))


seconds = st.floats(0.0, 10.0)


@given(
    prefill=st.dictionaries(st.integers(1, 512), seconds, min_size=1, max_size=5),
    decode=st.dictionaries(
        st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([64, 512])), seconds, min_size=1
    ),
    tokens=st.integers(1, 1024),
    rows=st.integers(1, 20),
    context=st.integers(1, 2048),
)
def test_an_emulated_device_takes_the_time_that_the_planner_predicts(
    prefill: dict[int, float],
    decode: dict[tuple[int, int], float],
    tokens: int,
    rows: int,
    context: int,
) -> None:
    times = LayerTimes(
        prefill=[PrefillTime(n, s) for n, s in prefill.items()],
        decode=[DecodeTime(b, c, s) for (b, c), s in decode.items()],
    )
    table = CostTable(
        Calibration(
            blocks={"full": times},
            embedding=EMBEDDING,
            head=HEAD,
            chunk_tokens=128,
            cpu_seconds_per_second=1.0,
        )
    )
    step = table.seconds(job(decode=True, rows=rows, context=context))
    prompt = table.seconds(job(decode=False, rows=tokens, context=tokens))
    assert step == pytest.approx(planner_cost.decode_seconds(times.decode, rows, context))
    assert prompt == pytest.approx(planner_cost.prefill_seconds(times.prefill, tokens))
