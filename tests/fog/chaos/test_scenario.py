"""What a scenario says, and what is wrong with one that says something else."""

import itertools
import random
from pathlib import Path

import pytest

from fog.chaos.run import SCENARIOS, ChaosError, check_state
from fog.chaos.scenario import (
    Fault,
    Kind,
    Scenario,
    check_targets,
    draw_faults,
    load_scenario,
    parse_scenario,
)
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


def faulty(kind: str, target: str) -> Scenario:
    return parse(f'[[fault]]\nat = "1 s"\nkind = "{kind}"\ntarget = "{target}"\n')


@pytest.mark.parametrize("target", ["laptop", "gateway", "master"])
def test_a_device_a_service_and_a_role_may_be_harmed(target: str) -> None:
    check_targets(faulty("kill", target), ["laptop", "pi"])


def test_a_target_that_nobody_is_called_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"'laptpo' .* did you mean 'laptop'"):
        check_targets(faulty("cut", "laptpo"), ["laptop", "pi"])


def test_faults_and_load_that_would_meet_two_fogs_are_refused() -> None:
    devices = [{"id": "laptop", "pid": 7}, {"id": "pi", "pid": 9}]
    check_state(faulty("kill", "pi"), "http://fog", Path("here"), {"laptop": 6, "pi": 9}, devices)

    with pytest.raises(ChaosError, match="http://fog is not that of here"):
        check_state(faulty("kill", "pi"), "http://fog", Path("here"), {"pi": 8}, devices)


def test_links_of_a_fog_that_has_none_to_cut_are_refused_with_the_remedy() -> None:
    devices = [{"id": "pi", "pid": 9}]
    check_state(faulty("cut", "pi"), "http://fog", Path("here"), {"pi": 9, "wires": 5}, devices)

    with pytest.raises(ChaosError, match="cannot suffer cut; start it with: e2llm up --chaos"):
        check_state(faulty("cut", "pi"), "http://fog", Path("here"), {"pi": 9}, devices)
