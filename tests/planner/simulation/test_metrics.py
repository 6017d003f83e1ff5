"""Summaries of runs, and the tables that stages are timed with."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest

from planner.simulation.metrics import distribution
from planner.simulation.tables import (
    DecodeTable,
    LinearDecode,
    PrefillCurve,
    decode_times,
    prefill_rate,
)
from tests.planner.simulation.scenes import at, both, run


def test_a_distribution_leaves_out_what_did_not_happen() -> None:
    found = distribution([nan, *range(101)])

    assert (found.mean, found.p50, found.p90, found.p99) == pytest.approx((50, 50, 90, 99))
    assert found.deviation == pytest.approx(np.std(range(101)))
    assert isnan(distribution([nan]).mean)


def test_a_summary_counts_who_decodes_too_slowly() -> None:
    # One row alone makes 10 tokens per second, two 5 each.
    result = run(
        [both(base=0.0, row=0.1, prompt=prefill_rate(1e6), slots=2)],
        at(0.0, 0.0, 50.0, prompt=10, answer=51),
    )

    summary = result.summary()

    assert list(summary.below_qos) == pytest.approx([2 / 3, 1.0])
    assert summary.decode_speed.p50 == pytest.approx(5.0, rel=0.02)
    assert summary.num_finished == 3
    assert summary.tokens_per_second == pytest.approx(153 / result.duration_seconds)
    assert summary.requests_per_second == pytest.approx(3 / result.duration_seconds)
    assert 0 < summary.utilisation < 1
    assert summary.end_to_end.mean > summary.ttft.mean > 0


def test_chunks_of_a_curve_add_up_to_the_whole_prompt() -> None:
    curve = PrefillCurve(((32, 0.4), (128, 1.0), (512, 8.0)))

    whole = curve(700, 0)

    assert whole == pytest.approx(8.0 + 188 * 7 / 384)
    assert sum(curve(100, start) for start in range(0, 700, 100)) == pytest.approx(whole)
    # Below the shortest measured prompt it costs what that one did.
    assert curve(5, 0) == pytest.approx(0.4)
    assert prefill_rate(50.0)(10, 1234) == pytest.approx(0.2)


def test_a_decode_table_is_linear_between_its_points() -> None:
    table = DecodeTable((1, 4), (0, 100), ((1.0, 2.0), (4.0, 8.0)))

    assert table(1, 50) == pytest.approx(1.5)
    assert table(2, 100) == pytest.approx(4.0)
    # Beyond the last context along the last two: 4 and 16 for one and four rows at 300.
    assert table(2, 300) == pytest.approx(8.0)
    assert table(7, 0) == pytest.approx(7.0)
    assert not table.is_context_free
    assert decode_times([(1, 0.1), (2, 0.3)])(2, 999) == pytest.approx(0.3)
    assert LinearDecode(0.1, 0.02, 1e-5)(3, 1000) == pytest.approx(0.1 + 0.06 + 0.03)


@pytest.mark.parametrize(
    "build",
    [
        lambda: PrefillCurve(()),
        lambda: PrefillCurve(((10, 2.0), (20, 1.0))),
        lambda: prefill_rate(0.0),
        lambda: DecodeTable((1, 1), (0,), ((1.0,), (1.0,))),
        lambda: DecodeTable((1,), (0, 5), ((1.0,),)),
        lambda: DecodeTable((1,), (0,), ((-1.0,),)),
    ],
)
def test_tables_that_cannot_be_times_are_refused(build: object) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=r"rise|needs|greater|negative"):
        build()
