"""`python -m broker`: its files, its signals, its end."""

import asyncio
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker.__main__ import main
from broker.access import Kind
from broker.address import BrokerAddress
from broker.credentials import (
    CredentialsError,
    given_passwords,
    load_or_create_credentials,
    password_variable,
)
from broker.embedded import embedded_broker
from broker.mqtt import MqttTransport
from broker.server import find_mosquitto, mosquitto_configuration, write_mosquitto_files
from broker.topics import DEVICE_STATUS, PLANNER_USER
from broker.transport import Connected
from tests.support.bus import (
    PATIENCE_SECONDS,
    SITE,
    BrokerProcess,
    free_port,
    running_broker,
    wait_for,
)

ROOT = Path(__file__).parent.parent.parent


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_credentials_are_made_once_kept_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "credentials.json"

    first = load_or_create_credentials(path, nodes=["node-1"], gateways=["gateway"])
    second = load_or_create_credentials(path, nodes=["node-1", "node-2"], clients=["lamp"])

    assert mode(path) == 0o600
    assert set(second) == {PLANNER_USER, "node-1", "node-2", "gateway", "lamp"}
    assert {user: second[user].password for user in first} == {
        user: credential.password for user, credential in first.items()
    }
    assert len({credential.password for credential in second.values()}) == 5
    assert second["lamp"].kind is Kind.CLIENT


def test_a_given_password_replaces_the_one_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    load_or_create_credentials(path, nodes=["node-1"])

    credentials = load_or_create_credentials(path, nodes=["node-1"], given={"node-1": "from-env"})

    assert credentials["node-1"].password == "from-env"
    assert load_or_create_credentials(path)["node-1"].password == "from-env"


def test_one_name_cannot_be_two_kinds_of_user(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    load_or_create_credentials(path, nodes=["kitchen"])

    with pytest.raises(CredentialsError, match="'kitchen' is a node and cannot be a gateway"):
        load_or_create_credentials(path, gateways=["kitchen"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"n": {"kind": "king", "password": "secret-word"}}', '{"n": 1}']
)
def test_a_damaged_credentials_file_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(text, "utf-8")

    with pytest.raises(CredentialsError, match=re.escape(str(path))) as caught:
        load_or_create_credentials(path)

    assert "secret-word" not in str(caught.value)


def test_passwords_come_from_secret_files_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "node-1").write_text("from-file\n", "utf-8")
    environ = {password_variable("node-1"): "from-env", password_variable("node-2"): "from-env"}

    given = given_passwords(["node-1", "node-2", "node-3"], environ, tmp_path)

    assert password_variable("node-1") == "E2LLM_PASSWORD_NODE_1"
    assert given == {"node-1": "from-file", "node-2": "from-env"}


def test_files_for_mosquitto_are_private_and_hold_no_password(tmp_path: Path) -> None:
    credentials = load_or_create_credentials(tmp_path / "credentials.json", nodes=["node-1"])

    configuration = write_mosquitto_files(tmp_path, 1883, credentials, SITE)

    files = [configuration, tmp_path / "mosquitto.acl", tmp_path / "mosquitto.passwords"]
    for path in files:
        assert mode(path) == 0o600
        assert not any(each.password in path.read_text("utf-8") for each in credentials.values())


def test_queues_hold_all_credit_and_a_packet_the_largest_message() -> None:
    text = mosquitto_configuration(
        bind="127.0.0.1",
        port=1883,
        password_file=Path("p"),
        acl_file=Path("a"),
        credit_bytes=1 << 30,
        max_payload_bytes=1 << 20,
    )

    values = dict(line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert int(values["max_queued_bytes"]) > 1 << 30
    assert int(values["max_queued_messages"]) * 4096 >= 1 << 30
    assert int(values["max_packet_size"]) > (1 << 20) + 65535


def test_the_explained_configuration_says_what_the_written_one_says() -> None:
    def settings(text: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                key, _, value = line.partition(" ")
                found.setdefault(key, []).append(value)
        return found

    folder = Path("/mosquitto/access")
    written = mosquitto_configuration(
        bind="0.0.0.0",
        port=1883,
        password_file=folder / "mosquitto.passwords",
        acl_file=folder / "mosquitto.acl",
    )

    explained = (ROOT / "broker" / "mosquitto.conf").read_text("utf-8")
    assert settings(explained) == settings(written)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
def test_a_signal_ends_it_quickly_and_in_order(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    if kind == "mosquitto":
        request.getfixturevalue("mosquitto_path")
    with running_broker(kind, tmp_path) as broker:
        client = MqttTransport(broker.address(PLANNER_USER), "client")
        client.connect()
        wait_for(client, Connected)
        started = time.monotonic()

        status = broker.stop(number)

        assert status == 0
        assert time.monotonic() - started < 4.0
        assert f"listening on 127.0.0.1:{broker.port}" in broker.log()
        assert "Traceback" not in broker.log()
        client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="a child ends with its parent on Linux only")
@pytest.mark.mosquitto
def test_mosquitto_does_not_outlive_a_killed_parent(mosquitto_path: Path, tmp_path: Path) -> None:
    broker = BrokerProcess("mosquitto", tmp_path)
    broker.start()

    broker.stop(signal.SIGKILL)

    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", broker.port)):
                return
        time.sleep(0.01)
    pytest.fail("Mosquitto still listens")


@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
def test_a_taken_port_ends_it_with_an_error_that_names_it(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    if kind == "mosquitto":
        request.getfixturevalue("mosquitto_path")
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        command = [sys.executable, "-m", "broker", "--prefer", kind, "--state", str(tmp_path)]
        done = subprocess.run(
            [*command, "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_passwords_command_writes_what_a_container_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("E2LLM_PASSWORD_NODE_1", "given")
    arguments = ["passwords", "--out", str(tmp_path), "--node", "node-1", "--gateway", "gateway"]

    assert main([*arguments, "--site", "garden", "--owner", f"{os.getuid()}"]) == 0

    credentials = json.loads((tmp_path / "credentials.json").read_text("utf-8"))
    assert credentials["node-1"] == {"kind": "node", "password": "given"}
    users = [
        line.partition(":")[0]
        for line in (tmp_path / "mosquitto.passwords").read_text("utf-8").splitlines()
    ]
    assert sorted(users) == ["gateway", "node-1", "planner"]
    assert DEVICE_STATUS.path("garden", device="node-1") in (tmp_path / "mosquitto.acl").read_text(
        "utf-8"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--port", "1883"], "--state and --port"),
        (["--state", "x", "--port", "1883", "--site", "a/b"], "'a/b'"),
        (["--state", "x", "--port", "1883", "--node", "a b"], "'a b'"),
        (["--state", "x", "--port", "1883", "--node", "planner"], "planner"),
    ],
)
def test_a_wrong_command_line_is_answered_with_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == 2

    assert complaint in capsys.readouterr().err


def test_mosquitto_is_found_in_folders_that_the_path_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "mosquitto"
    binary.write_text("#!/bin/sh\n", "utf-8")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("broker.server._FURTHER_FOLDERS", (str(tmp_path),))

    assert find_mosquitto() == binary

    binary.unlink()
    assert find_mosquitto() is None


async def test_the_embedded_broker_sends_at_once_without_waiting_for_more(tmp_path: Path) -> None:
    credentials = load_or_create_credentials(tmp_path / "credentials.json")
    port = free_port()
    async with embedded_broker("127.0.0.1", port, credentials, SITE) as broker:
        accepted: list[socket.socket] = []
        serve = broker.external_connected

        async def watch(reader, writer, name):  # type: ignore[no-untyped-def]
            accepted.append(writer._writer.get_extra_info("socket"))
            await serve(reader, writer, name)

        broker.external_connected = watch
        password = credentials[PLANNER_USER].password
        client = MqttTransport(BrokerAddress("127.0.0.1", port, PLANNER_USER, password), "c")
        client.connect()
        await asyncio.to_thread(wait_for, client, Connected)

        assert accepted[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await asyncio.to_thread(client.close)


async def test_the_embedded_broker_outlives_what_is_not_mqtt(tmp_path: Path) -> None:
    credentials = load_or_create_credentials(tmp_path / "credentials.json")
    port = free_port()
    async with embedded_broker("127.0.0.1", port, credentials, SITE):
        for noise in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x10\xff\xff\xff\xff\xff",
            b"\x10\x02\x00\x09xx",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(noise)
            assert await asyncio.wait_for(reader.read(), PATIENCE_SECONDS) == b""
            writer.close()
