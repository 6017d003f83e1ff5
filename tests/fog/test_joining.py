"""A device that joins: which gateway it finds, what it keeps, how it starts again."""

import stat
from pathlib import Path

import pytest

from broker.address import BrokerAddress
from broker.interfaces import Interface
from fog.joining import (
    Joined,
    JoinError,
    device_name,
    find_gateway,
    keep,
    kept,
    node_environ,
    try_broker,
)
from tests.fog.fake_gateway import Behaviour, serve
from tests.support.command_line import e2llm

UP = frozenset({"up", "multicast"})
HERE = [
    Interface("docker0", ("172.17.0.1",), UP),
    Interface("wlan0", ("192.168.1.8",), UP),
    Interface("eth0", ("192.168.1.7",), UP),
]
JOINED = Joined("pi", "home", BrokerAddress("fog", 1883, "pi", "secret"), "http://fog:8080")
Found = dict[str, list[tuple[str, str]]]


def find(found: Found, wanted: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    said: list[str] = []
    url = find_gateway(HERE, wanted, said.append, lambda address: found.get(address, []))
    return url, said


def test_the_interfaces_are_told_with_the_reason_and_containers_are_not_asked() -> None:
    asked: list[str] = []

    def look(address: str) -> list[tuple[str, str]]:
        asked.append(address)
        return [("gateway-1", "http://192.168.1.2:8080")]

    said: list[str] = []
    url = find_gateway(HERE, (), said.append, look)

    assert url == "http://192.168.1.2:8080"
    assert asked == ["192.168.1.7", "192.168.1.8"]
    assert "docker0 (172.17.0.1): not used, it is of containers or virtual machines" in said
    assert said[-1].startswith("chosen: gateway-1 at http://192.168.1.2:8080, through eth0")


def test_an_interface_that_is_named_is_the_only_one() -> None:
    url, _ = find({"172.17.0.1": [("g", "http://172.17.0.2:8080")]}, ("docker0",))
    assert url == "http://172.17.0.2:8080"


def test_none_or_several_gateways_are_for_a_person_to_decide() -> None:
    with pytest.raises(JoinError, match="--gateway"):
        find({})
    with pytest.raises(JoinError, match="http://a, http://b"):
        find({"192.168.1.7": [("g1", "http://a"), ("g2", "http://b")]})


def test_what_a_device_got_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    keep(JOINED, tmp_path / "pi")
    assert kept(tmp_path / "pi") == JOINED
    assert stat.S_IMODE((tmp_path / "pi").stat().st_mode) == 0o700
    files = list((tmp_path / "pi").iterdir())
    assert files
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


def test_a_device_that_has_not_joined_is_told_how() -> None:
    result = e2llm("node", "start", "--state", "/nowhere/at-all")
    assert result.returncode == 2
    assert "e2llm node join" in result.stderr


def test_the_node_is_told_by_file_and_settings_of_the_person_stay(tmp_path: Path) -> None:
    given = {"E2LLM_NODE_THREADS": "3", "E2LLM_BROKER": "mqtt://other", "HOME": "elsewhere"}
    environ = node_environ(JOINED, tmp_path, "2 GiB", given)
    assert "E2LLM_BROKER" not in environ
    assert "secret" not in str(environ)
    assert environ["E2LLM_BROKER_FILE"] == str(tmp_path / "broker")
    assert environ["E2LLM_NODE_ID"] == "pi"
    assert environ["E2LLM_SITE"] == "home"
    assert environ["E2LLM_NODE_MEMORY"] == "2 GiB"
    assert environ["E2LLM_NODE_THREADS"] == "3"


@pytest.mark.parametrize(
    ("hostname", "name"),
    [("pi5.local", "pi5"), ("My Laptop", "My-Laptop"), ("--", "device"), ("raspi_4", "raspi_4")],
)
def test_a_device_is_called_like_its_machine(hostname: str, name: str) -> None:
    assert device_name(hostname) == name


def test_a_server_that_is_no_gateway_is_named(tmp_path: Path) -> None:
    with serve() as url:
        result = e2llm(
            "node", "join", "--gateway", url, "--token", "t", "--id", "pi", "--no-start",
            "--state", str(tmp_path),
        )  # fmt: skip
    assert result.returncode == 1
    assert f"{url} is no gateway" in result.stderr


def test_a_token_that_does_not_count_is_told_apart_from_a_key(tmp_path: Path) -> None:
    with serve(Behaviour(key="another")) as url:
        result = e2llm(
            "node", "join", "--gateway", url, "--token", "t", "--id", "pi", "--no-start",
            "--state", str(tmp_path),
        )  # fmt: skip
    assert result.returncode == 1
    assert "does not take this token" in result.stderr
    assert "e2llm token create" in result.stderr
    assert "--key" not in result.stderr


def test_a_broker_that_nobody_reaches_is_named_with_the_remedy(unused_tcp_port: int) -> None:
    address = BrokerAddress("127.0.0.1", unused_tcp_port, "pi", "secret")
    with pytest.raises(JoinError, match="E2LLM_GATEWAY_PUBLIC_BROKER") as caught:
        try_broker(Joined("pi", "home", address, "http://fog:8080"), timeout_seconds=0.3)
    assert str(address) in str(caught.value)
    assert "secret" not in str(caught.value)
