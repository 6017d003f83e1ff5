"""What a stage notes of traced requests, and that it notes nothing of others."""

from __future__ import annotations

from typing import Final

import pytest

from broker.events import KvArrival, Spell, StageTimes
from broker.work import Open, RequestKey, Sampling, StepRow
from nodes.timing import Timing

TRACED: Final = RequestKey("traced", 1)
OTHER: Final = RequestKey("other", 1)
PARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def opened(key: RequestKey, traceparent: str | None) -> Open:
    return Open(
        request_id=key.request_id,
        attempt=key.attempt,
        gateway="gateway-1",
        prefill_replica="p",
        decode_replica="d",
        num_prompt_tokens=32,
        num_generated_tokens=0,
        max_tokens=8,
        sampling=Sampling(),
        traceparent=traceparent,
    )


@pytest.fixture
def timing() -> Timing:
    found = Timing("d", 1)
    found.open(opened(TRACED, PARENT), 10.0)
    found.open(opened(OTHER, None), 10.0)
    return found


def row(key: RequestKey, position: int) -> StepRow:
    return StepRow(key.request_id, key.attempt, position, 7)


def told(timing: Timing) -> StageTimes:
    times = timing.close(TRACED)
    assert times is not None
    return times


def test_only_requests_with_a_trace_are_told_of_and_once(timing: Timing) -> None:
    assert timing.close(OTHER) is None
    assert not timing.is_idle
    assert told(timing) == StageTimes(request_id="traced", attempt=1, replica="d", stage=1)
    assert timing.close(TRACED) is None
    assert timing.is_idle


def test_prefill_is_the_last_chunks_stay_and_the_computing_of_all(timing: Timing) -> None:
    timing.chunk_came(TRACED, 11.0)
    timing.chunk_ran(TRACED, 11.5, 12.0)
    timing.chunk_came(TRACED, 13.0)
    timing.chunk_ran(TRACED, 13.25, 14.0)

    assert told(timing).prefill == Spell(1.0, 1.25, 2)


def test_the_first_stage_counts_from_open(timing: Timing) -> None:
    timing.chunk_ran(TRACED, 11.0, 12.0)
    timing.chunk_ran(TRACED, 12.0, 13.0)

    assert told(timing).prefill == Spell(3.0, 2.0, 2)


def test_decode_is_the_sum_of_all_stays(timing: Timing) -> None:
    for begin in (20.0, 30.0):
        timing.rows_came([row(OTHER, 40), row(TRACED, 32)], begin)
        timing.rows_ran([row(OTHER, 40), row(TRACED, 32)], begin + 1, begin + 2)

    assert told(timing).decode == Spell(4.0, 2.0, 2)


def test_a_result_that_is_sent_again_was_here_once(timing: Timing) -> None:
    timing.rows_came([row(TRACED, 32)], 20.0)
    timing.rows_ran([row(TRACED, 32)], 20.0, 21.0)
    timing.rows_ran([row(TRACED, 32)], 50.0, 50.0)

    assert told(timing).decode.seconds == 1.0


def test_proposed_rows_are_part_of_their_step(timing: Timing) -> None:
    rows = [row(TRACED, 32), row(TRACED, 33), row(TRACED, 34)]
    timing.rows_came(rows, 20.0)
    timing.rows_ran(rows, 20.0, 20.5)

    assert told(timing).decode == Spell(0.5, 0.5, 1)


def test_a_master_tells_how_long_kv_and_row_were_awaited(timing: Timing) -> None:
    timing.kv_came(TRACED, 100, 11.0)
    timing.token_came(TRACED, 12.0)
    timing.token_came(TRACED, 12.5)  # repeated
    timing.kv_came(TRACED, 50, 14.0)
    timing.complete(TRACED, 14.0)
    timing.row_given(TRACED, 15.5)
    timing.rows_ran([row(TRACED, 32)], 16.0, 16.5)

    times = told(timing)
    assert times.kv == KvArrival(150, 3.0)
    assert times.handover_seconds == 2.0
    assert times.waiting_seconds == 1.5
    assert times.decode == Spell(1.0, 0.5, 1)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_what_is_no_length_of_time_cannot_be_told(seconds: float) -> None:
    with pytest.raises(ValueError, match="no lengths of time"):
        Spell(seconds)
    with pytest.raises(ValueError, match="no lengths of time"):
        StageTimes(request_id="q", attempt=1, replica="d", stage=0, waiting_seconds=seconds)
