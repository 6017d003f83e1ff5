"""The API over a fake engine, for the tests of HTTP and of MQTT."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.model_folder import EOS, ids_of, write_model_folder
from tests.support.prompts_site import Site


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(lambda generation: [*ids_of("It is 12."), EOS])


@pytest.fixture
def api(engine: FakeEngine, folder: Path, tmp_path: Path) -> Api:
    return Api(engine, settings_for(folder, tmp_path))


@pytest.fixture
async def site(api: Api) -> AsyncIterator[Site]:
    site = Site(api)
    site.prompts.start()
    site.transport.connect()
    site.client.connect()
    yield site
    await site.prompts.stop()
