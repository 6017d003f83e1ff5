"""What each process of a local fog is told, and where a fog keeps its things."""

import random
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from broker.access import Kind
from broker.address import BrokerAddress
from broker.credentials import load_credentials
from fog.config import DEFAULT_FOG, FogConfig, load_config
from fog.model_choice import DEMO_MODEL, ModelChoiceError, choose_model
from fog.ports import PortBusyError, check_port, free_port, is_free
from fog.preparation import UpOptions, prepare
from fog.processes import ProcessSpec
from fog.redis_server import write_redis_config
from fog.services import NODE_STOP_RANK, STOP_RANKS, ServicePlan, build_specs
from fog.state import StateError, StateFolder, default_state
from gateway.home.remembrance import Remembrance

CONFIG = load_config(DEFAULT_FOG)
IDS = [device.id for device in CONFIG.devices]
PASSWORDS = {user: f"secret-of-{user}" for user in [*IDS, "planner", "gateway"]}


def specs(
    base_environ: dict[str, str] | None = None,
    config: FogConfig = CONFIG,
    weights: str | None = None,
    wires: dict[str, int] | None = None,
    home: str | None = None,
) -> dict[str, ProcessSpec]:
    plan = ServicePlan(
        config=config,
        state=StateFolder(Path("/state")),
        model="/models/tiny",
        model_name="tiny",
        gateway_port=8081,
        broker_port=21000,
        redis_port=21001,
        redis_password="pw",
        redis_argv=("valkey-server", "redis.conf"),
        passwords=PASSWORDS,
        base_environ=base_environ or {},
        weights=weights,
        wires=wires or {},
        home=home,
    )
    return {spec.name: spec for spec in build_specs(plan)}


def test_a_fog_is_broker_redis_planner_gateway_and_a_process_per_device() -> None:
    assert set(specs()) == {"broker", "redis", "planner", "gateway", *IDS}


def test_for_chaos_devices_reach_the_broker_over_wires_and_nobody_else_does() -> None:
    ports = {device: 22000 + number for number, device in enumerate(IDS)}

    found = specs(wires=ports)

    assert f"--wire={IDS[0]}=22000" in found["wires"].argv
    assert "127.0.0.1:21000" in found["wires"].argv
    for name in [*IDS, "planner", "gateway"]:
        address = BrokerAddress.parse(found[name].environ["E2LLM_BROKER"])
        assert address.port == ports.get(name, 21000)
        conditions = found[name].environ.get("E2LLM_NODE_CONDITIONS")
        assert conditions == ("/state/conditions.json" if name in IDS else None)


def test_the_broker_lets_a_fog_be_shown_in_home_assistant_only_where_it_is() -> None:
    assert "--home-assistant" not in specs()["broker"].argv
    argv = specs(home="ha")["broker"].argv
    assert argv[argv.index("--home-assistant") + 1] == "ha"


def test_home_assistant_has_a_credential_while_the_fog_is_shown_or_taken_back(
    tmp_path: Path,
) -> None:
    folder = StateFolder(tmp_path)
    shown = replace(CONFIG, gateway={"home_assistant": "homeassistant"})

    def prefix_of(config: FogConfig) -> str | None:
        return prepare(config, choose_model(None), UpOptions(), folder).home

    assert prefix_of(CONFIG) is None
    assert not folder.home_assistant_url.exists()
    assert prefix_of(shown) == "homeassistant"
    address = BrokerAddress.parse(folder.home_assistant_url.read_text().strip())
    users = load_credentials(folder.broker / "credentials.json")
    assert users["home-assistant"].kind is Kind.HOME_ASSISTANT
    assert address.password == users["home-assistant"].password
    # The gateway has shown something, and is to take it back.
    Remembrance(folder.gateway).keep(
        "homeassistant", ["homeassistant/device/e2llm-local/fog/config"]
    )
    assert prefix_of(CONFIG) == "homeassistant"
    Remembrance(folder.gateway).keep("homeassistant", [])
    assert prefix_of(CONFIG) is None
    assert not folder.home_assistant_url.exists()


def test_every_process_gets_its_own_credential_and_no_other() -> None:
    for name, spec in specs().items():
        if name in ("broker", "redis"):
            assert "E2LLM_BROKER" not in spec.environ
            continue
        address = BrokerAddress.parse(spec.environ["E2LLM_BROKER"])
        assert (address.username, address.password) == (name, PASSWORDS[name])
        assert address.port == 21000
        others = [password for user, password in PASSWORDS.items() if user != name]
        assert not any(other in str(spec.environ) for other in others)


def test_a_fog_has_one_user_for_programs_of_the_person_and_tells_its_address(
    tmp_path: Path,
) -> None:
    folder = StateFolder(tmp_path / "state")
    plans = [prepare(CONFIG, choose_model(None), UpOptions(), folder) for _ in range(2)]

    address = BrokerAddress.parse(folder.client_url.read_text())

    credential = load_credentials(folder.broker / "credentials.json")["app"]
    assert credential.kind is Kind.CLIENT
    assert (address.username, address.password) == ("app", credential.password)
    # That of the last start; the password stays.
    assert (address.host, address.port) == ("127.0.0.1", plans[-1].broker_port)
    assert plans[0].passwords["app"] == credential.password
    assert folder.client_url.stat().st_mode & 0o077 == 0
    assert not any(credential.password in str(spec.environ) for spec in build_specs(plans[-1]))


def test_a_node_is_told_its_speed_memory_and_link_and_nothing_of_redis() -> None:
    environ = specs()["pi4-cellar"].environ
    assert environ["E2LLM_NODE_ID"] == "pi4-cellar"
    assert float(environ["E2LLM_NODE_SLOWDOWN"]) == 12
    assert environ["E2LLM_NODE_MEMORY"] == "30 %"
    assert float(environ["E2LLM_NODE_LINK_DELAY_SECONDS"]) == pytest.approx(0.004)
    assert float(environ["E2LLM_NODE_LINK_BYTES_PER_SECOND"]) == pytest.approx(6_250_000)
    assert environ["OMP_NUM_THREADS"] == "1"
    assert "E2LLM_REDIS" not in environ


def test_nodes_share_measurements_but_not_their_state() -> None:
    nodes = [specs()[name].environ for name in IDS]
    assert len({environ["E2LLM_NODE_CACHE"] for environ in nodes}) == 1
    assert len({environ["E2LLM_NODE_STATE"] for environ in nodes}) == len(nodes)


def test_settings_that_a_person_has_in_the_shell_do_not_reach_the_wrong_process() -> None:
    shell = {"E2LLM_NODE_THREADS": "9", "E2LLM_LOG": "DEBUG", "HF_ENDPOINT": "http://hub", "A": "b"}
    environ = specs(shell)["gateway"].environ
    assert "E2LLM_NODE_THREADS" not in environ
    assert environ["E2LLM_LOG"] == "DEBUG"
    assert environ["HF_ENDPOINT"] == "http://hub"
    assert environ["A"] == "b"


def test_the_command_lines_weights_win_over_those_of_the_fog_file() -> None:
    config = replace(CONFIG, gateway={"weights": "bfloat16"})
    of_the_file = specs(config=config)["gateway"].environ
    of_the_command = specs(config=config, weights="int8")["gateway"].environ
    assert of_the_file["E2LLM_GATEWAY_WEIGHTS"] == "bfloat16"
    assert of_the_command["E2LLM_GATEWAY_WEIGHTS"] == "int8"
    assert "E2LLM_GATEWAY_WEIGHTS" not in specs()["gateway"].environ


def test_the_broker_is_stopped_after_the_nodes_have_said_goodbye() -> None:
    ranks = {name: spec.stop_rank for name, spec in specs().items()}
    assert all(ranks[name] == NODE_STOP_RANK for name in IDS)
    assert ranks["gateway"] < NODE_STOP_RANK < ranks["broker"] == STOP_RANKS["broker"]


def test_a_folder_named_like_a_package_where_a_person_starts_a_fog_does_no_harm(
    tmp_path: Path,
) -> None:
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "__init__.py").write_text("raise SystemExit('shadowed')")
    spec = specs({"PATH": "/usr/bin:/bin"})["broker"]
    result = subprocess.run(
        [*spec.argv[:4], "--help"], cwd=tmp_path, env=spec.environ, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_a_fog_has_one_state_folder_per_port(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    assert default_state(8080, environ).path == tmp_path / "e2llm" / "8080"
    assert default_state(8081, environ).path == tmp_path / "e2llm" / "8081"
    assert default_state(8080, {"XDG_STATE_HOME": "relative"}).path.is_absolute()


def test_two_fogs_cannot_share_a_state_folder(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    # A lock belongs to the open file, so the same process may try to take it twice.
    with (
        folder.locked(),
        pytest.raises(StateError, match="already runs on the state folder"),
        folder.locked(),
    ):
        pass
    with folder.locked():
        assert (folder.path.stat().st_mode & 0o077) == 0


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StateError, match="--state DIR"),
        StateFolder(tmp_path / "file" / "state").locked(),
    ):
        pass


def test_a_busy_port_is_refused_with_who_holds_it_and_the_option_to_choose_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(PortBusyError, match=f"--port {port + 1}") as caught:
            check_port(port)
        if sys.platform == "linux":
            assert "process " in str(caught.value)


def test_ports_for_broker_and_redis_are_free_and_below_the_outgoing_range() -> None:
    rng = random.Random(7)
    first = free_port(rng)
    # The same draw again must skip the one that is taken already.
    second = free_port(random.Random(7), frozenset({first}))
    assert first != second
    assert max(first, second) < 32768


def test_only_the_owner_can_read_the_password_of_redis(tmp_path: Path) -> None:
    path = write_redis_config(tmp_path / "redis", 21001, "secret")
    assert path.stat().st_mode & 0o077 == 0
    assert 'requirepass "secret"' in path.read_text()


def test_a_model_is_the_demo_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    assert choose_model(None).source == str(DEMO_MODEL)
    (tmp_path / "config.json").write_text("{}")
    assert choose_model(str(tmp_path)).source == str(tmp_path)
    assert choose_model("Qwen/Qwen2.5-0.5B-Instruct").source == "Qwen/Qwen2.5-0.5B-Instruct"


def test_a_gguf_file_is_a_model_and_so_is_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "tiny-Q4_K.gguf"
    path.write_bytes(b"GGUF")
    assert choose_model(str(path)).source == str(path)
    assert choose_model(str(tmp_path)).source == str(tmp_path)


@pytest.mark.parametrize("text", ["./absent", "/absent/model", "absent", "a/b/c"])
def test_what_is_no_folder_and_no_hub_id_is_refused(text: str) -> None:
    with pytest.raises(ModelChoiceError, match="no such folder"):
        choose_model(text)


def test_a_file_that_is_no_model_is_refused_though_a_hub_id_could_look_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fog").mkdir()
    (tmp_path / "fog" / "fog.toml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelChoiceError, match="this file is no model"):
        choose_model("fog/fog.toml")


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_model_is_refused_as_empty(text: str) -> None:
    with pytest.raises(ModelChoiceError, match="is empty"):
        choose_model(text)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelChoiceError, match=r"no config\.json"):
        choose_model(str(tmp_path))
