"""`python -m nodes` as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.address import BrokerAddress
from broker.codec import decode_control
from broker.control import DeviceState, DeviceStatus
from broker.mqtt import MqttTransport
from broker.topics import DEVICE_STATUS, PLANNER_USER
from broker.transport import Received
from tests.support.bus import SITE, BrokerProcess, running_broker, wait_for

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("mosquitto_path")


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    folder = tmp_path_factory.mktemp("broker")
    with running_broker("mosquitto", folder, nodes=("pi", "orin")) as broker:
        yield broker


@pytest.fixture
def observer(bus: BrokerProcess) -> Iterator[MqttTransport]:
    transport = MqttTransport(bus.address(PLANNER_USER), PLANNER_USER)
    transport.subscribe([(DEVICE_STATUS.filter(SITE), DEVICE_STATUS.qos)])
    transport.connect()
    yield transport
    transport.close()


def start(
    address: BrokerAddress, device: str, folder: Path, **changes: str
) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "E2LLM_BROKER": address.url,
        "E2LLM_SITE": SITE,
        "E2LLM_NODE_ID": device,
        "E2LLM_NODE_STATE": str(folder),
        **changes,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "nodes"], env=environ, stderr=subprocess.PIPE, text=True
    )


def wait_for_file(path: Path) -> None:
    """Wait for a file that another process writes; nothing else tells of it."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)


def wait_for_state(observer: MqttTransport, device: str, state: DeviceState) -> DeviceStatus:
    topic = DEVICE_STATUS.path(SITE, device=device)

    def is_it(event: Received) -> bool:
        return event.topic == topic and decode_control(event.payload, DeviceStatus).state is state

    return decode_control(wait_for(observer, Received, is_it, 60).payload, DeviceStatus)


def test_a_node_that_is_told_to_stop_says_goodbye_at_once(
    bus: BrokerProcess, observer: MqttTransport, tmp_path: Path
) -> None:
    node = start(bus.address("pi"), "pi", tmp_path)
    ready = wait_for_state(observer, "pi", DeviceState.READY)
    assert ready.pid == node.pid
    told_at = time.monotonic()
    node.send_signal(signal.SIGTERM)
    lost = wait_for_state(observer, "pi", DeviceState.LOST)
    assert time.monotonic() - told_at < 1.0
    assert node.wait(10) == 0
    assert lost.session == ready.session
    assert "Traceback" not in node.communicate()[1]


def test_a_node_that_is_still_importing_torch_ends_at_once(
    bus: BrokerProcess, tmp_path: Path
) -> None:
    # As the dynamic loader does with the real one: no other thread gets to run.
    torch = tmp_path / "torch"
    torch.mkdir()
    begun = tmp_path / "begun"
    (torch / "__init__.py").write_text(
        f"import ctypes; open({str(begun)!r}, 'w').close(); ctypes.PyDLL(None).sleep(60)"
    )
    node = start(bus.address("pi"), "pi", tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    wait_for_file(begun)
    node.send_signal(signal.SIGTERM)
    assert node.wait(10) == -signal.SIGTERM
    assert node.communicate()[1] == ""


def test_the_broker_reports_a_node_that_died_and_the_next_start_is_a_later_session(
    bus: BrokerProcess, observer: MqttTransport, tmp_path: Path
) -> None:
    node = start(bus.address("orin"), "orin", tmp_path)
    first = wait_for_state(observer, "orin", DeviceState.READY)
    node.kill()
    node.communicate()
    assert wait_for_state(observer, "orin", DeviceState.LOST).session == first.session
    node = start(bus.address("orin"), "orin", tmp_path)
    assert wait_for_state(observer, "orin", DeviceState.READY).session > first.session
    node.terminate()
    node.communicate()


def test_a_wrong_password_ends_the_node_with_the_remedy(bus: BrokerProcess, tmp_path: Path) -> None:
    wrong = BrokerAddress("127.0.0.1", bus.port, "pi", "wrong")
    node = start(wrong, "pi", tmp_path)
    errors = node.communicate(timeout=60)[1]
    assert node.returncode == 1
    assert "give the device its own credential" in errors
    assert "wrong" not in errors


def test_a_missing_setting_ends_the_node_with_its_name(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("E2LLM_")}
    ended = subprocess.run(
        [sys.executable, "-m", "nodes"], env=environ, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "E2LLM_NODE_ID is not set" in ended.stderr
    assert "Traceback" not in ended.stderr
