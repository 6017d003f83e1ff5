"""A device becomes a user of a broker that runs, and nobody else loses anything by it."""

import stat
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from broker.access import Credential, Kind
from broker.address import BrokerAddress
from broker.joining import (
    JoinFolder,
    JoinRefusedError,
    JoinRequest,
    LeaveRequest,
    Request,
    admit,
    dismiss,
    take_in,
)
from broker.mqtt import MqttTransport
from broker.transport import Connected, Disconnected, Refused
from tests.support.bus import PATIENCE_SECONDS, BrokerProcess, running_broker, wait_for

USERS = {
    "planner": Credential("planner", "p", Kind.PLANNER),
    "pi": Credential("pi", "old", Kind.NODE),
    "app": Credential("app", "a", Kind.CLIENT),
}


def asked(device: str, *, may_replace: bool = False) -> JoinRequest:
    return JoinRequest("1", device, "new", may_replace)


def test_a_new_device_is_a_node_and_nothing_else_changes() -> None:
    users = admit(USERS, asked("mac"))
    assert users == {**USERS, "mac": Credential("mac", "new", Kind.NODE)}


def test_a_device_that_is_there_gets_a_new_password_only_where_that_is_allowed() -> None:
    with pytest.raises(JoinRefusedError, match="there already"):
        admit(USERS, asked("pi"))
    assert admit(USERS, asked("pi", may_replace=True))["pi"].password == "new"


@pytest.mark.parametrize("name", ["planner", "app"])
def test_no_other_user_is_ever_replaced(name: str) -> None:
    with pytest.raises(JoinRefusedError, match="is the name of a"):
        admit(USERS, asked(name, may_replace=True))


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "../x", "-x", "a\nb", "x" * 200])
def test_a_name_that_can_be_no_user_is_refused(name: str) -> None:
    with pytest.raises(JoinRefusedError):
        admit(USERS, asked(name))


def test_a_device_that_leaves_is_no_user_any_more_and_nothing_else_changes() -> None:
    users = dismiss(USERS, LeaveRequest("1", "pi"))
    assert users == {name: user for name, user in USERS.items() if name != "pi"}


@pytest.mark.parametrize("name", ["planner", "app", "toaster"])
def test_nobody_but_a_device_is_removed(name: str) -> None:
    with pytest.raises(JoinRefusedError):
        dismiss(USERS, LeaveRequest("1", name))


def test_requests_are_private_answered_once_and_told_apart(tmp_path: Path) -> None:
    folder = JoinFolder(tmp_path / "joins")
    folder.make()
    good, bad = folder.ask("mac", may_replace=False), folder.ask("app", may_replace=True)
    (folder.path / "0.request").write_text("{")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in folder.path.glob("????*.request"))
    assert not folder.is_settled(good)
    applied: list[Mapping[str, Credential]] = []

    users = take_in(folder, USERS, applied.append)

    assert users["mac"].password == good.password
    assert applied == [users]
    assert folder.is_settled(good)
    with pytest.raises(JoinRefusedError):
        folder.is_settled(bad)
    assert list(folder.path.iterdir()) == []
    assert take_in(folder, users, applied.append) == users
    assert len(applied) == 1


# --- brokers that run -----------------------------------------------------------------------


@pytest.fixture(params=["mosquitto", "amqtt"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto_path")
    name: str = request.param
    return name


def settled(folder: JoinFolder, request: Request) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not folder.is_settled(request):
        assert time.monotonic() < deadline
        time.sleep(0.02)  # another process answers


def connects(broker: BrokerProcess, device: str, password: str) -> bool:
    """Whether the broker lets a device in soon; Mosquitto reads its files after it was told."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        transport = MqttTransport(BrokerAddress("127.0.0.1", broker.port, device, password), device)
        transport.connect()
        try:
            while (event := transport.receive(PATIENCE_SECONDS)) is not None:
                if isinstance(event, Connected):
                    return True
                if isinstance(event, Refused):
                    break
        finally:
            transport.close()
    return False


def test_a_device_joins_while_others_stay_connected_and_is_known_after_a_restart(
    tmp_path: Path, kind: str
) -> None:
    with running_broker(kind, tmp_path, nodes=["pi"]) as broker:
        folder = JoinFolder(tmp_path / "joins")
        other = MqttTransport(broker.address("pi"), "pi")
        other.connect()
        wait_for(other, Connected)

        request = folder.ask("mac", may_replace=False)
        settled(folder, request)

        assert connects(broker, "mac", request.password)
        assert other.is_connected
        assert other.receive(0) is None
        other.close()
        broker.stop()
        broker.start()
        assert connects(broker, "mac", request.password)


def test_a_device_that_was_removed_is_let_in_no_more_and_mosquitto_drops_it(
    tmp_path: Path, kind: str
) -> None:
    with running_broker(kind, tmp_path, nodes=["pi", "mac"]) as broker:
        folder = JoinFolder(tmp_path / "joins")
        address = broker.address("mac")
        inside = MqttTransport(address, "mac")
        inside.connect()
        wait_for(inside, Connected)

        settled(folder, folder.ask_leave("mac"))

        if kind == "mosquitto":
            wait_for(inside, Disconnected)
        inside.close()
        outside = MqttTransport(address, "mac")
        outside.connect()
        wait_for(outside, Refused)
        outside.close()
        pi = MqttTransport(broker.address("pi"), "pi")
        pi.connect()
        wait_for(pi, Connected)
        pi.close()
