"""The compose fog: each process gets its own secret and no other, and the file holds together."""

import re
from pathlib import Path

import pytest
import yaml

from broker.address import BrokerAddress
from fog.compose import HEALTH_USER, main, write_secrets

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def write(folder: Path, home: str | None = None) -> None:
    write_secrets(
        folder / "users",
        folder / "mosquitto",
        folder / "redis",
        nodes=["pi", "mac"],
        gateways=["gateway-1"],
        home=home,
    )


def secret(folder: Path, user: str) -> str | None:
    return BrokerAddress.parse((folder / "users" / user / "broker").read_text()).password


def test_every_process_gets_a_password_of_its_own(tmp_path: Path) -> None:
    write(tmp_path)
    passwords = [secret(tmp_path, user) for user in ("planner", "gateway-1", "pi", "mac")]
    assert len(set(passwords)) == 4
    assert all(passwords)


def test_a_node_learns_nothing_of_redis(tmp_path: Path) -> None:
    write(tmp_path)
    assert [path.name for path in (tmp_path / "users" / "pi").iterdir()] == ["broker"]
    assert (tmp_path / "users" / "planner" / "redis").read_text().startswith("redis://:")


def test_a_second_start_keeps_all_passwords(tmp_path: Path) -> None:
    write(tmp_path)
    before = {p: p.read_text() for p in (tmp_path / "users").rglob("*") if p.is_file()}
    write(tmp_path)
    assert before == {p: p.read_text() for p in before}


def test_redis_asks_for_the_password_that_its_users_have(tmp_path: Path) -> None:
    write(tmp_path)
    password = (tmp_path / "redis" / "password").read_text()
    assert f"requirepass {password}\n" in (tmp_path / "redis" / "redis.conf").read_text()
    assert f":{password}@" in (tmp_path / "users" / "gateway-1" / "redis").read_text()


def test_the_health_user_can_log_in_and_may_publish_nothing_of_a_device(tmp_path: Path) -> None:
    write(tmp_path)
    assert f"{HEALTH_USER}:" in (tmp_path / "mosquitto" / "mosquitto.passwords").read_text()
    acl = (tmp_path / "mosquitto" / "mosquitto.acl").read_text()
    rules = acl.split(f"user {HEALTH_USER}\n")[1].split("\nuser ")[0]
    assert "replicas" not in rules
    assert "plan" not in rules


def test_home_assistant_has_a_password_where_the_fog_is_shown_there(tmp_path: Path) -> None:
    write(tmp_path)
    assert not (tmp_path / "mosquitto" / "home-assistant").exists()

    write(tmp_path, home="homeassistant")

    assert len((tmp_path / "mosquitto" / "home-assistant").read_text()) >= 32
    acl = (tmp_path / "mosquitto" / "mosquitto.acl").read_text()
    assert "topic write homeassistant/device/e2llm-local/+/config" in acl
    write(tmp_path)
    acl = (tmp_path / "mosquitto" / "mosquitto.acl").read_text()
    assert "topic write homeassistant/" not in acl


def test_one_variable_of_the_compose_file_shows_the_fog_in_home_assistant(
    services: dict[str, dict[str, object]],
) -> None:
    variable = "${E2LLM_HOME_ASSISTANT:-}"
    assert f"--home-assistant={variable}" in str(services["secrets"]["command"])
    environment = services["gateway"]["environment"]
    assert isinstance(environment, dict)
    assert environment["E2LLM_GATEWAY_HOME_ASSISTANT"] == variable


@pytest.mark.parametrize(("prefix", "status"), [("", 0), ("#", 2)])
def test_the_variable_may_be_empty_and_nothing_that_is_no_prefix(
    prefix: str, status: int, tmp_path: Path
) -> None:
    folders = [f"--{name}={tmp_path / name}" for name in ("users", "mosquitto", "redis")]
    assert main([*folders, "--gateway", "gateway-1", f"--home-assistant={prefix}"]) == status


def test_a_name_that_cannot_be_a_user_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [f"--{name}={tmp_path / name}" for name in ("users", "mosquitto", "redis")]
    assert main([*folders, "--node", "a/b"]) == 2
    assert "a/b" in capsys.readouterr().err


def test_every_node_of_the_file_has_a_secret_that_is_written_and_mounted(
    services: dict[str, dict[str, object]],
) -> None:
    nodes = {name for name, service in services.items() if "cpus" in service}
    named = re.findall(r"--node (\S+)", str(services["secrets"]["command"]))
    assert set(named) == nodes
    assert len(nodes) == 6
    written = str(services["secrets"]["volumes"])
    for name in nodes:
        environment = services[name]["environment"]
        assert isinstance(environment, dict)
        assert environment["E2LLM_NODE_ID"] == name
        mounted = services[name]["volumes"]
        assert mounted == [f"{name}-access:/access:ro", f"{name}-state:/var/lib/e2llm"]
        assert f"{name}-access:/secrets/users/{name}" in written


def test_limits_are_unequal_and_only_the_gateway_is_published_on_loopback(
    services: dict[str, dict[str, object]],
) -> None:
    nodes = [service for service in services.values() if "cpus" in service]
    assert len({service["cpus"] for service in nodes}) == 6
    assert len({service["mem_limit"] for service in nodes}) == 6
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert published == {"gateway": ["127.0.0.1:8080:8080"]}


def test_every_long_running_service_has_a_health_check(
    services: dict[str, dict[str, object]],
) -> None:
    assert [name for name, s in services.items() if "healthcheck" not in s] == ["secrets"]
