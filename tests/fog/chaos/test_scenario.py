"""What a scenario says, and what is wrong with one that says something else."""

import itertools
import random
from pathlib import Path

import pytest

from fog.chaos.run import SCENARIOS
from fog.chaos.scenario import Fault, Kind, Scenario, draw_faults, load_scenario, parse_scenario
from fog.tomlreader import ConfigError

PATH = Path("chaos.toml")


def parse(text: str, seed: int | None = None) -> Scenario:
    return parse_scenario(text, PATH, seed=seed)


def test_faults_come_in_order_with_what_they_leave_out_filled_in() -> None:
    scenario = parse(
        '[[fault]]\nat = "9 s"\nkind = "slow"\ntarget = "laptop"\n'
        '[[fault]]\nat = "2 s"\nkind = "kill"\ntarget = "gateway"\n'
        '[[fault]]\nat = "3 s"\nkind = "freeze"\ntarget = "decode"\nlasts = "4 s"\n'
    )

    assert scenario.faults == (
        Fault(at_seconds=2.0, kind=Kind.KILL, target="gateway"),
        Fault(at_seconds=3.0, kind=Kind.FREEZE, target="decode", lasts_seconds=4.0),
        Fault(at_seconds=9.0, kind=Kind.SLOW, target="laptop", lasts_seconds=20.0, times=4.0),
    )
    assert scenario.seconds == 29 + scenario.settle_seconds


def test_the_same_seed_draws_the_same_faults_and_another_one_others() -> None:
    text = 'seed = 4\n[random]\ncount = 30\nevery = "10 s"\n'

    assert parse(text) == parse(text)
    assert parse(text).faults != parse(text, seed=5).faults
    assert parse(text, seed=5).seed == 5


def test_drawn_faults_have_their_number_their_gaps_and_only_what_can_happen() -> None:
    kinds, targets = list(Kind), ["any", "gateway", "redis"]

    faults = draw_faults(random.Random(1), 500, 10.0, 5.0, kinds, targets, 0.2)

    times = sorted({fault.at_seconds for fault in faults})
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(faults) == 500
    assert times[0] == 5.0
    assert all(5.0 <= gap <= 15.001 for gap in gaps)
    assert 0.1 < 1 - len(times) / len(faults) < 0.25
    assert {fault.kind for fault in faults} == set(Kind)
    services = [fault for fault in faults if fault.target != "any"]
    assert {fault.kind for fault in services} == {Kind.KILL, Kind.FREEZE}


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_scenarios_that_ship_can_be_read(path: Path) -> None:
    assert load_scenario(path).faults


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("streams = 0\n", 1, "whole number from 1"),
        ("answers = 0\n", 1, "whole number from 1"),
        ("sampled = 2\n", 1, "from 0 to 1"),
        ("seeds = 1\n", 1, "unknown key"),
        ("streams = 3\n", 1, "has no fault"),
        ("fault = 3\n", 1, "own [[fault]] table"),
        ("random = 3\n", 1, "as a table"),
        ('[[fault]]\nat = "1 s"\nkind = "kil"\ntarget = "x"\n', 3, "did you mean"),
        ('[[fault]]\nat = 1\nkind = "kill"\ntarget = "x"\n', 2, "5 ms"),
        ('[[fault]]\nat = "1 s"\nkind = "kill"\n', 1, "needs the key 'target'"),
        ('[[fault]]\nat = "1 s"\nkind = "cut"\ntarget = "redis"\n', 4, "happens to devices"),
        ('[[fault]]\nat = "1 s"\nkind = "kill"\ntarget = "x"\ntimes = 4\n', 5, "means nothing"),
        ('[[fault]]\nat = "1 s"\nkind = "kill"\ntarget = "x"\nlasts = "1 s"\n', 5, "means nothing"),
        ('[[fault]]\nat = "1 s"\nkind = "slow"\ntarget = "x"\ntimes = 1\n', 5, "above 1"),
        ('[random]\ncount = 3\nevery = "1 s"\nkinds = []\n', 4, "not empty"),
        ('[random]\ncount = 3\nevery = "1 s"\nkind = []\n', 4, "unknown key"),
        ("[random\n", 1, "not valid TOML"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, line: int, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)

    assert str(caught.value).startswith(f"chaos.toml:{line}:")
    assert what in str(caught.value)
