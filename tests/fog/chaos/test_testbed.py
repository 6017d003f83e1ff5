"""Faults reach processes and containers, and are undone."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from broker.conditions import Condition, ConditionsFile, write_conditions
from fog.chaos.director import Director, candidates, choose
from fog.chaos.report import Incident
from fog.chaos.scenario import Fault, Kind
from fog.chaos.testbed import ComposeFog, FaultError, LocalFog, UnsupportedFaultError
from fog.state import StateFolder

PLAN = {
    "replicas": [
        {"role": "prefill", "stages": [{"device": "a"}, {"device": "b"}]},
        {"role": "decode", "stages": [{"device": "c"}, {"device": "d"}]},
        {"role": "both", "stages": [{"device": "e"}]},
    ],
    "idle": [{"device": "f"}],
}


def fault(kind: Kind, target: str = "pi", lasts: float = 0.0, times: float = 1.0) -> Fault:
    return Fault(at_seconds=0.0, kind=kind, target=target, lasts_seconds=lasts, times=times)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the processes of `e2llm up` -----------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)


def test_a_process_is_killed_frozen_and_thawed(folder: StateFolder) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleeper, start_new_session=True) as process:
        folder.processes.write_text(json.dumps({"pi": process.pid}))
        fog = LocalFog(folder, {})
        seen = psutil.Process(process.pid)

        fog.begin("pi", fault(Kind.FREEZE, lasts=1.0))
        until(lambda: seen.status() == psutil.STATUS_STOPPED)
        fog.end("pi", fault(Kind.FREEZE, lasts=1.0))
        until(lambda: seen.status() != psutil.STATUS_STOPPED)
        fog.begin("pi", fault(Kind.FREEZE, lasts=1.0))
        fog.restore()
        until(lambda: seen.status() != psutil.STATUS_STOPPED)
        fog.begin("pi", fault(Kind.KILL))

        assert process.wait(20) == -signal.SIGKILL


def test_a_process_that_is_being_started_is_waited_for(folder: StateFolder) -> None:
    pids: list[int] = []

    def sleep(seconds: float) -> None:
        pids.append(len(pids))
        if len(pids) == 3:
            folder.processes.write_text(json.dumps({"pi": 2**22 + 1}))  # Nobody has this id.

    LocalFog(folder, {}, sleep).begin("pi", fault(Kind.KILL))

    assert len(pids) == 3


def test_links_and_speeds_are_written_for_wires_and_nodes(folder: StateFolder) -> None:
    fog = LocalFog(folder, {"pi": 1e6})
    file = ConditionsFile(folder.conditions)

    fog.begin("pi", fault(Kind.LINK, times=10))
    fog.begin("pc", fault(Kind.SLOW, times=4))
    assert file.read() == {
        "pi": Condition(link_bytes_per_second=1e5),
        "pc": Condition(slowdown=4),
    }
    fog.end("pi", fault(Kind.LINK))
    fog.begin("tv", fault(Kind.CUT))
    assert file.read() == {"pc": Condition(slowdown=4), "tv": Condition(cut=True)}
    fog.restore()
    assert file.read() == {}


def test_conditions_that_cannot_be_understood_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "conditions.json"
    file = ConditionsFile(path)
    assert file.read() == {}
    write_conditions(path, {"pi": Condition(cut=True)})
    assert file.read() == {"pi": Condition(cut=True)}

    path.write_text('{"pi": {"cut": tr')
    os.utime(path, ns=(1, 1))

    assert file.read() == {"pi": Condition(cut=True)}
    path.unlink()
    assert file.read() == {}


# --- the containers of compose -------------------------------------------------------------


class Docker:
    """Answers commands and remembers them."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __call__(self, command: Sequence[str]) -> str:
        line = " ".join(command)
        self.ran.append(line)
        if "ps --all" in line:
            return "c0ffee\n"
        if "NanoCpus" in line:
            return "1500000000\n"
        return "site_default \n" if "Networks" in line else ""


def test_containers_are_killed_and_started_paused_disconnected_and_slowed() -> None:
    docker = Docker()
    fog = ComposeFog(Path(), docker, lambda seconds: None)

    for each in (fault(Kind.KILL), fault(Kind.FREEZE), fault(Kind.CUT), fault(Kind.SLOW, times=4)):
        fog.begin("pi", each)
        fog.end("pi", each)

    changes = [line for line in docker.ran if "inspect" not in line and " ps " not in line]
    assert changes == [
        "docker compose kill --signal KILL pi",
        "docker compose start pi",
        "docker compose pause pi",
        "docker compose unpause pi",
        "docker network disconnect --force site_default c0ffee",
        "docker network connect --alias pi site_default c0ffee",
        "docker update --cpus 0.375 c0ffee",
        "docker update --cpus 1.500 c0ffee",
    ]
    with pytest.raises(UnsupportedFaultError, match="links of containers"):
        fog.begin("pi", fault(Kind.LINK))


def test_what_is_left_is_undone_at_the_end() -> None:
    docker = Docker()
    fog = ComposeFog(Path(), docker)
    fog.begin("pi", fault(Kind.FREEZE))

    fog.restore()
    fog.restore()

    assert docker.ran == ["docker compose pause pi", "docker compose unpause pi"]


# --- whom, and when --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "devices"),
    [
        ("prefill", "abe"),
        ("decode", "cde"),
        ("master", "ace"),
        ("idle", "f"),
        ("any", "abcdef"),
        ("tv", ["tv"]),
        ("redis", ["redis"]),
    ],
)
def test_a_target_is_looked_up_in_the_plan(target: str, devices: Sequence[str]) -> None:
    assert sorted(candidates(target, PLAN)) == list(devices)


def test_a_role_without_a_replica_means_whoever_serves_both() -> None:
    plan = {"replicas": [{"role": "prefill", "stages": [{"device": "a"}, {"device": "b"}]}]}

    assert candidates("decode", plan) == ["a", "b"]


def test_whoever_is_harmed_is_left_alone_and_no_more_than_two_are() -> None:
    rng = random.Random(1)
    drawn = {choose(fault(Kind.KILL, "decode"), PLAN, ["c"], rng)[0] for _ in range(50)}

    assert drawn == {"d", "e"}
    assert choose(fault(Kind.KILL, "any"), PLAN, ["a", "c"], rng)[0] == ""
    assert choose(fault(Kind.KILL, "any"), PLAN, ["a", "redis"], rng)[0] in set("bcdef")
    assert choose(fault(Kind.KILL, "b"), PLAN, ["a", "c"], rng)[0] == "b"
    assert choose(fault(Kind.KILL, "a"), PLAN, ["a"], rng)[0] == ""


class Recorder:
    """A testbed that remembers."""

    def __init__(self, fails: type[FaultError] | None = None) -> None:
        self.fails = fails
        self.events: list[str] = []
        self.done = threading.Event()

    def begin(self, name: str, fault: Fault) -> None:
        if self.fails and fault.kind is Kind.LINK:
            raise self.fails("not here")
        self.events.append(f"{fault.kind.value} {name}")

    def end(self, name: str, fault: Fault) -> None:
        self.events.append(f"end {fault.kind.value} {name}")
        self.done.set()

    def restore(self) -> None:
        self.events.append("restore")


def test_faults_come_at_their_times_and_are_undone_at_theirs() -> None:
    faults = [
        Fault(at_seconds=0.0, kind=Kind.CUT, target="a", lasts_seconds=0.1),
        Fault(at_seconds=0.02, kind=Kind.KILL, target="redis"),
        Fault(at_seconds=0.04, kind=Kind.KILL, target="a"),
    ]
    testbed, told = Recorder(), list[Incident]()
    director = Director(testbed, faults, lambda: PLAN, random.Random(1), told.append)

    director.start()
    until(lambda: director.is_done)
    director.stop()

    assert testbed.events == ["cut a", "kill redis", "end cut a", "restore"]
    assert [(each.name, bool(each.skipped)) for each in told] == [
        ("a", False),
        ("redis", False),
        ("a", True),
    ]
    assert director.error is None


def test_a_fault_that_cannot_be_brought_ends_the_scenario_with_the_reason() -> None:
    director = Director(
        Recorder(fails=FaultError), [fault(Kind.LINK, "a")] * 3, lambda: PLAN, random.Random(1)
    )

    director.start()
    until(lambda: director.is_done)
    director.stop()

    assert str(director.error) == "not here"
    assert director.incidents == []


def test_a_fault_that_a_fog_cannot_have_is_left_out_and_the_others_come() -> None:
    testbed = Recorder(fails=UnsupportedFaultError)
    faults = [fault(Kind.LINK, "a"), fault(Kind.KILL, "a")]
    director = Director(testbed, faults, lambda: PLAN, random.Random(1))

    director.start()
    until(lambda: director.is_done)
    director.stop()

    assert director.error is None
    assert [each.skipped for each in director.incidents] == ["not here", ""]
    assert testbed.events == ["kill a", "restore"]
