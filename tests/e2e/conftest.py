"""One fog for all tests of this folder: a start takes ten seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running_fog import RunningFog, running_fog


@pytest.fixture(scope="session")
def started_fog(
    mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningFog]:
    with running_fog(tmp_path_factory.mktemp("fog")) as fog:
        yield fog


@pytest.fixture
def fog(started_fog: RunningFog) -> RunningFog:
    """The default fog, whole again after what the test before did to it."""
    started_fog.wait_until_whole()
    return started_fog
