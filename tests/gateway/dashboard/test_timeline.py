"""Requests as bars over time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import pytest

from gateway.dashboard.timeline import MOST_ENDED, MOST_OPEN, ended, in_flight

SVG = "{http://www.w3.org/2000/svg}"
WIDTH = 1000


def request(number: int = 0, state: str = "answering", **changes: Any) -> dict[str, Any]:
    """A request of 10 seconds: 2 of waiting, 3 of prefill, 1 of KV, 4 of decode."""
    times = (("queue", 0.0, 2.0), ("prefill", 2.0, 3.0), ("kv_transfer", 5.0, 1.0))
    phases = [
        {"phase": name, "begins_seconds": begins, "seconds": took}
        for name, begins, took in (*times, ("decode", 6.0, 4.0))
    ]
    return {
        "id": f"chatcmpl-{number:024x}",
        "caller": "kitchen",
        "model": "tiny",
        "state": state,
        "began_at": 1000.0 + number,
        "seconds": 10.0,
        "phases": phases,
        **changes,
    }


def bars(drawn: str) -> list[tuple[str, float, float]]:
    """Return the class, left edge and width of each bar of the first request."""
    rects = re.findall(
        r'<rect x="([\d.]+)" y="16" width="([\d.]+)" height="10" class="([\w-]+)"', drawn
    )
    return [(name, float(x), float(width)) for x, width, name in rects if name != "track"]


def texts(drawn: str) -> list[str]:
    root = ET.fromstring(drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    return ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]


def test_a_request_in_flight_ends_at_the_right_edge_which_is_now() -> None:
    found = bars(in_flight([request()], WIDTH))

    # The scale is the next round time, 10 seconds.
    assert found == [
        ("queue", 0.0, 200.0),
        ("prefill", 200.0, 300.0),
        ("kv-transfer", 500.0, 100.0),
        ("decode", 600.0, 400.0),
    ]


def test_a_younger_request_stands_further_to_the_right() -> None:
    phases = [{"phase": "queue", "begins_seconds": 0.0, "seconds": 4.0}]
    young = request(1, "waiting", seconds=4.0, phases=phases)

    assert bars(in_flight([young, request()], WIDTH))[-1] == ("queue", 600.0, 400.0)


def test_a_request_that_ended_begins_at_the_left_edge() -> None:
    found = bars(ended([request(state="finished", seconds=40.0)], WIDTH))

    assert [name for name, _, _ in found] == ["queue", "prefill", "kv-transfer", "decode"]
    # The scale is a minute.
    assert found[0][2] == pytest.approx(2 / 60 * WIDTH, abs=0.1)
    assert found[0][1] == 0.0


def test_a_stretch_that_took_next_to_no_time_is_still_seen() -> None:
    phases = [
        {"phase": "queue", "begins_seconds": 0.0, "seconds": 0.0001},
        {"phase": "prefill", "begins_seconds": 0.0001, "seconds": 9.9},
    ]

    assert bars(in_flight([request(phases=phases)], WIDTH))[0] == ("queue", 0.0, 1.0)


def test_of_a_request_that_goes_on_for_long_the_beginning_is_cut_off() -> None:
    phases = [{"phase": "decode", "begins_seconds": 0.0, "seconds": 5000.0}]

    found = bars(in_flight([request(seconds=5000.0, phases=phases)], WIDTH))

    assert found == [("decode", 0.0, 1000.0)]


def test_words_say_what_colours_say() -> None:
    drawn = in_flight([request()], WIDTH)

    assert "decode, 4 s" in texts(drawn)
    assert "Waiting 2 s, Prefill 3 s, KV transfer 1 s, Decode 4 s" in drawn
    assert {"Waiting", "Prefill", "KV transfer", "Decode"} <= set(texts(drawn))


def test_names_of_keys_and_models_are_text_and_never_markup() -> None:
    drawn = in_flight([request(caller="<script>alert(1)</script>")], WIDTH)

    assert "<script>" not in drawn
    assert any("<script>" in text for text in texts(drawn))


def test_many_requests_stay_in_bounds_and_readable_on_a_phone() -> None:
    many = [request(number) for number in range(MOST_OPEN + 30)]
    done = [request(number, "finished") for number in range(MOST_ENDED + 30)]

    drawn, below = in_flight(many, 390), ended(done, 390)

    assert "and 30 more" in texts(drawn)
    assert drawn.count('class="track"') == MOST_OPEN
    assert below.count('class="track"') == MOST_ENDED
    # A row has a line of text and a bar; nothing overlaps.
    rows = [float(y) for y in re.findall(r"translate\(0 ([\d.]+)\)", drawn)]
    assert min(b - a for a, b in pairwise(rows)) >= 28
    assert all(x + width <= 390.1 for _, x, width in bars(drawn))


def test_the_latest_to_end_comes_first() -> None:
    done = [request(number, "finished") for number in range(3)]

    drawn = ended(done, WIDTH)

    first, last = (drawn.index(f"chatcmpl-{number:024x}") for number in (2, 0))
    assert first < last


def test_where_there_is_nothing_it_says_so() -> None:
    assert "No request is in flight" in in_flight([request(state="finished")], WIDTH)
    assert "No request has ended" in ended([request()], WIDTH)
