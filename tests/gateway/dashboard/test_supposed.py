"""What the planner would plan, as tables and a picture."""

from __future__ import annotations

import pytest
from msgspec import structs

from broker.plan import IdleDevice, Rates, Role
from broker.whatif import Finding, Move, WhatIf, WhatIfAnswer
from gateway.dashboard.supposed import (
    answer_facts,
    moves_table,
    rates_table,
    reasons_table,
    supposed_picture,
)
from gateway.dashboard.whatif import Wish
from tests.support.shown_fog import DEVICES, plan_of, replica

PLAN = structs.replace(
    plan_of(0, replica("r-1", Role.PREFILL, DEVICES[:2]), replica("r-2", Role.DECODE, ["pi-1"])),
    idle=[IdleDevice(device="pi4-cellar", reason="it would make answers later")],
    reasons={"pi-1": "the <fastest> to decode", "mini-pc": "prefill", "laptop": "prefill"},
)
ANSWER = WhatIfAnswer(
    request_id="q",
    finding=Finding.PLANNED,
    reason="12 % more requests per second",
    plan=PLAN,
    moves=[Move(device="pi-1", num_bytes=64 << 20, seconds=0.7)],
    by_data_sheet=["pi-1"],
    seconds=0.4,
)


def test_the_facts_say_what_would_happen_why_and_on_whose_word() -> None:
    facts = dict(answer_facts(ANSWER))

    assert facts["What would happen"] == "2 replicas on 3 devices"
    assert facts["Why"] == "12 % more requests per second"
    assert facts["Times by data sheet, not measured"] == "pi-1"


def test_replicas_that_stay_and_a_fog_that_cannot_serve_are_said_to_be_so() -> None:
    kept = structs.replace(ANSWER, keeps_replicas=True)
    none = structs.replace(ANSWER, plan=None, finding=Finding.IMPOSSIBLE, reason="no room")

    assert "stay as they are" in dict(answer_facts(kept))["What would happen"]
    assert "could not serve" in dict(answer_facts(none))["What would happen"]


def test_rates_of_now_stand_beside_the_supposed_ones() -> None:
    table = rates_table(Rates(requests_per_second=2.0), Rates(requests_per_second=3.0))

    assert "<td>2</td><td>3</td><td>+50 %</td>" in table


def test_without_a_plan_of_now_there_is_no_change() -> None:
    assert "<td>–</td><td>3</td><td>–</td>" in rates_table(None, Rates(requests_per_second=3.0))


def test_what_would_move_is_told_in_bytes_and_seconds() -> None:
    assert "<td>pi-1</td><td>64 MiB</td><td>700 ms</td>" in moves_table(ANSWER)


def test_each_device_has_its_place_and_reason_as_text() -> None:
    table = reasons_table(PLAN)

    assert "<td>pi-1</td><td>decode, layers 0–23</td>" in table
    assert "the &lt;fastest&gt; to decode" in table
    assert "<td>pi4-cellar</td><td>idle</td><td>it would make answers later</td>" in table


@pytest.mark.parametrize("width", [390, 1440])
def test_the_picture_has_every_device_of_the_supposed_fog(width: int) -> None:
    drawn = supposed_picture(PLAN, width)

    for name in ("mini-pc", "laptop", "pi-1", "pi4-cellar"):
        assert f'data-device="{name}"' in drawn
    assert "is-lost" not in drawn


def question(**fields: object) -> WhatIf:
    return Wish(**fields).question({"mini-pc", "pi-1"})  # type: ignore[arg-type]


def test_a_form_becomes_a_question() -> None:
    asked = question(gone=["mini-pc"], slow="laptop", factor=3, like=" pi ", number=2)

    assert (asked.drop, asked.slow) == (["mini-pc"], {"laptop": 3.0})
    # There is a device pi-1 already.
    assert [(each.id, each.like) for each in asked.add] == [("pi-2", "pi"), ("pi-3", "pi")]


def test_an_empty_form_asks_for_the_fog_as_it_is() -> None:
    asked = question()

    assert (asked.drop, asked.slow, asked.add) == ([], {}, [])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"like": "pi", "number": 0}, "from 1 to 8"),
        ({"like": "pi", "number": 99}, "from 1 to 8"),
        ({"slow": "laptop", "factor": None}, "how many times"),
        ({"slow": "laptop", "factor": -1}, "greater than 0"),
        ({"slow": "laptop", "gone": ["laptop"]}, "changed twice: laptop"),
    ],
)
def test_a_form_that_makes_no_sense_is_told_why(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        question(**fields)
