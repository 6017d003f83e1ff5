"""One broker of each kind for all tests of the folder; those that stop it start their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.topics import HOME_PREFIX
from tests.support.bus import BrokerProcess, running_broker

NODES, GATEWAYS, CLIENTS = ("node-1", "node-2"), ("gateway-1",), ("client-1",)


@pytest.fixture(scope="session")
def mosquitto(
    mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokerProcess]:
    folder = tmp_path_factory.mktemp("mosquitto")
    with running_broker("mosquitto", folder, NODES, GATEWAYS, CLIENTS, HOME_PREFIX) as broker:
        yield broker


@pytest.fixture(scope="session")
def amqtt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    folder = tmp_path_factory.mktemp("amqtt")
    with running_broker("amqtt", folder, NODES, GATEWAYS, CLIENTS, HOME_PREFIX) as broker:
        yield broker


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
def any_broker(request: pytest.FixtureRequest) -> BrokerProcess:
    """Each real broker in turn, with these users, the planner and Home Assistant."""
    broker: BrokerProcess = request.getfixturevalue(request.param)
    return broker
