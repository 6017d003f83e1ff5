"""``python -m gateway`` as a process: start, refusals, stop. No broker is needed for these."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from safetensors.numpy import save_file

from broker.settings import SettingsError, read_settings
from gateway.server import listen
from gateway.settings import PREFIX, Settings
from tests.support.bus import free_port
from tests.support.gateway_process import (
    STOP_SECONDS,
    WAIT_SECONDS,
    environ_for,
    gateway,
    get_when,
)
from tests.support.model_folder import CONFIG, tensors_of, write_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("tiny"))


def refusal(environ: dict[str, str]) -> str:
    """Return what a gateway says that ends with the status for refused settings."""
    with gateway(environ) as process:
        assert process.wait(WAIT_SECONDS) == 2
        assert process.stderr is not None
        return process.stderr.read()


def test_a_gateway_starts_without_a_broker_and_says_so(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with gateway(environ_for(folder, tmp_path, port)) as process:
        get_when(f"{url}/healthz", lambda response: response.status_code == 200)
        models = get_when(f"{url}/v1/models", lambda response: bool(response.json()["data"]))
        assert models.json()["data"][0]["id"] == folder.name
        ready = httpx2.get(f"{url}/readyz")
        assert ready.status_code == 503
        assert "broker" in ready.json()["reason"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0


@pytest.mark.parametrize(("per_client", "takes_prompts"), [("1", True), ("0", False)])
def test_one_gateway_of_a_site_takes_prompts_over_mqtt(
    folder: Path, tmp_path: Path, per_client: str, takes_prompts: bool
) -> None:
    port = free_port()
    environ = environ_for(folder, tmp_path, port, E2LLM_GATEWAY_PROMPTS_PER_CLIENT=per_client)
    url = f"http://127.0.0.1:{port}"
    with gateway(environ) as process:
        get_when(f"{url}/v1/models", lambda response: bool(response.json()["data"]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    # Nothing listens at the broker's address, and each connection says so.
    assert "client gateway-1 of" in log
    assert ("client gateway-1~prompts of" in log) is takes_prompts


def test_a_gateway_stops_at_once_although_a_stream_is_open(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    environ = environ_for(folder, tmp_path, port, E2LLM_GATEWAY_KEEP_ALIVE_SECONDS="0.05")
    url = f"http://127.0.0.1:{port}"
    body = {"prompt": "MARKER", "stream": True}
    with gateway(environ) as process, httpx2.Client(timeout=WAIT_SECONDS) as client:
        get_when(f"{url}/v1/models", lambda response: bool(response.json()["data"]))
        with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            # The request waits for a fog; what keeps the stream alive shows that it is open.
            assert next(lines) == ": keep-alive"
            process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line.startswith("data:")]
        assert process.wait(STOP_SECONDS) == 0
        assert "stopping" in json.loads(last[-1].removeprefix("data: "))["error"]["message"]
        assert process.stderr is not None
        log = process.stderr.read()
    assert "MARKER" not in log
    assert "Traceback" not in log


def test_a_missing_tensor_is_named_by_readyz(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    tensors = tensors_of(CONFIG)
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    port = free_port()
    with gateway(environ_for(folder, tmp_path, port)):
        ready = get_when(
            f"http://127.0.0.1:{port}/readyz",
            lambda response: "model.layers.2.mlp.down_proj.weight" in response.json()["reason"],
        )
        assert ready.status_code == 503
        [problem] = ready.json()["details"]["checkpoint_problems"]
        assert "model.layers.2.mlp.down_proj.weight" in problem


def test_a_model_that_cannot_be_served_ends_the_gateway(tmp_path: Path) -> None:
    message = refusal(environ_for(tmp_path, tmp_path / "state", free_port()))
    assert "has no config.json" in message
    assert "Traceback" not in message


def test_a_port_in_use_is_named(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        message = refusal(environ_for(folder, tmp_path, port))
    assert f"port {port}" in message
    assert "E2LLM_GATEWAY_PORT" in message
    assert "Traceback" not in message


def test_strangers_need_a_key_that_a_person_is_told_how_to_make(
    folder: Path, tmp_path: Path
) -> None:
    state, port = tmp_path / "state", free_port()
    environ = environ_for(folder, state, port, E2LLM_GATEWAY_HOST="0.0.0.0")
    message = refusal(environ)
    assert f"e2llm key create NAME --scope admin --state {state}" in message
    assert "E2LLM_GATEWAY_ALLOW_OPEN" in message

    command = [sys.executable, "-m", "fog", "key", "create", "me", "--scope", "admin"]
    made = subprocess.run(
        [*command, "--state", str(state)], capture_output=True, text=True, check=True
    )
    key = made.stdout.strip()
    url = f"http://127.0.0.1:{port}"
    with gateway(environ):
        get_when(f"{url}/healthz", lambda response: response.status_code == 200)
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx2.get(f"{url}/v1/models", headers=headers).status_code == 200


def test_a_wrong_setting_is_named(folder: Path, tmp_path: Path) -> None:
    environ = environ_for(folder, tmp_path, 8080, E2LLM_GATEWAY_PROT="8081")
    assert "E2LLM_GATEWAY_PROT" in refusal(environ)


# --- settings, without a process ------------------------------------------------------------

BASE = {
    "E2LLM_BROKER": "mqtt://gw:secret@localhost",
    "E2LLM_GATEWAY_MODEL": "model",
    "E2LLM_GATEWAY_STATE": "state",
}


def settings_from(**changes: str) -> Settings:
    return read_settings(Settings, PREFIX, {**BASE, **changes})


def test_a_gateway_is_named_like_its_user_of_the_broker() -> None:
    assert settings_from().gateway_id == "gw"
    assert settings_from(E2LLM_BROKER="mqtt://localhost").gateway_id == "gateway-1"
    assert settings_from(E2LLM_GATEWAY_ID="gw").gateway_id == "gw"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_address_that_strangers_reach_is_open_only_where_that_is_said(host: str) -> None:
    assert not settings_from(E2LLM_GATEWAY_HOST=host).may_be_open
    opened = settings_from(E2LLM_GATEWAY_HOST=host, E2LLM_GATEWAY_ALLOW_OPEN="true")
    assert opened.may_be_open


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert settings_from(E2LLM_GATEWAY_HOST=host).may_be_open


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"E2LLM_GATEWAY_HOST": "::1"}, "http://[::1]:8080"),
        ({"E2LLM_GATEWAY_PORT": "81"}, "http://127.0.0.1:81"),
        ({"E2LLM_GATEWAY_PUBLIC_URL": "https://fog.example/"}, "https://fog.example"),
        (
            {"E2LLM_GATEWAY_HOST": "0.0.0.0", "E2LLM_GATEWAY_ALLOW_OPEN": "true"},
            f"http://{socket.gethostname()}:8080",
        ),
    ],
)
def test_the_address_for_others_follows_from_host_and_port(
    variables: dict[str, str], url: str
) -> None:
    assert settings_from(**variables).base_url == url


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("E2LLM_BROKER", "http://localhost", "mqtt://"),
        ("E2LLM_SITE", "a/b", "a/b"),
        ("E2LLM_LOG", "LOUD", "LOUD"),
        ("E2LLM_GATEWAY_ID", "other", "E2LLM_BROKER"),
        ("E2LLM_GATEWAY_PORT", "0", "port 0"),
        ("E2LLM_GATEWAY_PORT", "http", "E2LLM_GATEWAY_PORT"),
        ("E2LLM_GATEWAY_WEIGHTS", "int3", "int3"),
        ("E2LLM_GATEWAY_KV_FORMAT", "float8", "float8"),
        ("E2LLM_GATEWAY_QUEUE_LIMIT", "0", "queue_limit"),
        ("E2LLM_GATEWAY_PROMPTS_PER_CLIENT", "-1", "prompts_per_client"),
        ("E2LLM_GATEWAY_MAX_BODY_BYTES", "0", "max_body_bytes"),
        ("E2LLM_GATEWAY_URL_SECONDS", "0", "url_seconds"),
        ("E2LLM_GATEWAY_DEADLINE_SECONDS", "-1", "deadline_seconds"),
        ("E2LLM_GATEWAY_KEEP_ALIVE_SECONDS", "nan", "keep_alive_seconds"),
        ("E2LLM_GATEWAY_ADMIN_KEY", "short", "20 characters"),
    ],
)
def test_a_value_that_cannot_be_is_named(variable: str, value: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        settings_from(**{variable: value})


def test_a_message_about_the_broker_does_not_repeat_the_password() -> None:
    with pytest.raises(SettingsError) as refused:
        settings_from(E2LLM_BROKER="mqtts://gw:secret@localhost")
    assert "secret" not in str(refused.value)


def test_small_events_are_not_held_back_by_the_kernel() -> None:
    with listen("127.0.0.1", 0) as listener:
        # What asyncio looks at before it sets TCP_NODELAY on a connection.
        assert listener.proto == socket.IPPROTO_TCP
