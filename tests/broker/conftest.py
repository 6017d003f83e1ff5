"""One broker of each kind for all tests of the folder; those that stop it start their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bus import BrokerProcess, running_broker

USERS = {"nodes": ("node-1", "node-2"), "gateways": ("gateway-1",), "clients": ("client-1",)}


@pytest.fixture(scope="session")
def mosquitto(
    mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokerProcess]:
    with running_broker("mosquitto", tmp_path_factory.mktemp("mosquitto"), **USERS) as broker:
        yield broker


@pytest.fixture(scope="session")
def amqtt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with running_broker("amqtt", tmp_path_factory.mktemp("amqtt"), **USERS) as broker:
        yield broker


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
def any_broker(request: pytest.FixtureRequest) -> BrokerProcess:
    """Each real broker in turn, with the users `USERS` and the planner."""
    broker: BrokerProcess = request.getfixturevalue(request.param)
    return broker
