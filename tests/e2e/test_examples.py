"""The files of examples/ against `e2llm up` with API keys, each run as its reader runs it."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from broker.address import BrokerAddress
from broker.codec import decode_frame
from broker.events import Event, Tokens
from broker.mqtt import MqttTransport
from broker.topics import GATEWAY_EVENTS, PROMPT, REPLY
from broker.transport import Connected, Publication, Received
from fog.client import FogClient
from tests.support.bus import wait_for
from tests.support.examples import FOLDER, PROGRAMS, run_example, run_program
from tests.support.running_fog import ROOT, SITE, RunningFog, running_fog

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.slow,
    pytest.mark.usefixtures("clients"),
]

LEFT = "Left in the middle"
STOPPED_WITHIN_SECONDS = 1.0
"""From leaving to the last token that a node computes."""
WATCHED_SECONDS = 0.5
"""Time after that in which no token may come."""
MICROPYTHON = ROOT / "tests" / "support" / "micropython"


@pytest.fixture(scope="module")
def started_fog(
    mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningFog]:
    """A fog of our own, since it is closed to whoever has no key."""
    with running_fog(tmp_path_factory.mktemp("closed")) as fog:
        fog.client = FogClient(fog.url, key=made_key(fog, "admin"), look_seconds=60.0)
        yield fog


def made_key(fog: RunningFog, scope: str) -> str:
    key: str = fog.client.change("POST", "/fog/keys", {"name": "examples", "scope": scope})["key"]
    return key


@pytest.fixture(scope="module")
def user_key(started_fog: RunningFog) -> str:
    return made_key(started_fog, "user")


@pytest.fixture
def http(fog: RunningFog, user_key: str) -> dict[str, str]:
    where = {"E2LLM_URL": fog.url, "E2LLM_MODEL": fog.model}
    # The package `ollama` knows a name of its own.
    return {**where, "E2LLM_API_KEY": user_key, "OLLAMA_API_KEY": user_key}


@pytest.fixture
def mqtt(fog: RunningFog) -> dict[str, str]:
    return {"E2LLM_BROKER": fog.state.client_url.read_text().strip()}


@dataclass
class Answer:
    """What the nodes have said of one request.

    Attributes:
        token_times: When each token came.
        is_finished: Whether one of them was said to be the last.
    """

    token_times: list[float] = field(default_factory=list)
    is_finished: bool = False


@contextmanager
def every_token(fog: RunningFog) -> Iterator[dict[str, Answer]]:
    """Give what the nodes tell the gateway while the block lasts, by request."""
    answers: dict[str, Answer] = {}
    transport = MqttTransport(fog.address("gateway"), "spectator")
    transport.subscribe([(GATEWAY_EVENTS.filter(SITE), GATEWAY_EVENTS.qos)])
    transport.connect()
    wait_for(transport, Connected)
    is_over = threading.Event()

    def listen() -> None:
        while not is_over.is_set():
            message = transport.receive(0.1)
            if not isinstance(message, Received):
                continue
            event, _ = decode_frame(message.payload, Event)
            for row in event.rows if isinstance(event, Tokens) else ():
                answer = answers.setdefault(row.request_id, Answer())
                answer.token_times.append(time.monotonic())
                answer.is_finished |= row.finish_reason is not None

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        yield answers
    finally:
        is_over.set()
        listener.join()
        transport.close()


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("openai_chat.py", "Refused: model_not_found"),
        ("openai_chat.mjs", "Refused: model_not_found"),
        ("langchain_chat.py", "Refused: model_not_found"),
        ("litellm_chat.py", "Refused: 404"),
        ("ollama_chat.py", "Refused: "),
    ],
)
def test_a_client_of_http_streams_is_refused_and_leaves(
    fog: RunningFog, http: dict[str, str], name: str, refused: str
) -> None:
    with every_token(fog) as answers:
        run = run_example(name, environ=http)
        watch_until_after(run.at(LEFT))

    assert_streamed_and_refused(run.text, refused)
    assert_only_one_was_left(answers, run.at(LEFT))


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_paho_streams_is_refused_and_cancels(
    fog: RunningFog, mqtt: dict[str, str], protocol: str
) -> None:
    with every_token(fog) as answers:
        run = run_example("mqtt_paho.py", "--protocol", protocol, environ=mqtt)
        watch_until_after(run.at(LEFT))

    assert_streamed_and_refused(run.text, "Refused: model_not_found")
    assert f"{LEFT}: cancelled" in run.text
    assert_only_one_was_left(answers, run.at(LEFT))


def test_the_last_will_of_a_client_that_is_gone_ends_its_requests(fog: RunningFog) -> None:
    prompts = PROMPT.path(SITE, client="app")
    will = Publication(prompts, b'{"cancel": "*"}', PROMPT.qos)
    long = {"prompt": "7 + 5 =", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with every_token(fog) as answers, fog.bus("app", will=will) as client:
        client.publish(Publication(prompts, json.dumps(long).encode(), PROMPT.qos))
        fog.until(lambda: answers, "a node has computed a token")

        client.drop()
        left_at = time.monotonic()
        watch_until_after(left_at)

    assert_only_one_was_left(answers, left_at)


def watch_until_after(left_at: float) -> None:
    rest = left_at + STOPPED_WITHIN_SECONDS + WATCHED_SECONDS - time.monotonic()
    time.sleep(max(rest, 0))


def assert_streamed_and_refused(text: str, refused: str) -> None:
    answer, tokens, *rest = text.splitlines()
    assert "12" in answer
    assert tokens.endswith(" tokens")
    assert int(tokens.split()[0]) > 4
    assert any(line.startswith(refused) for line in rest)


def assert_only_one_was_left(answers: dict[str, Answer], left_at: float) -> None:
    [left] = [answer for answer in answers.values() if not answer.is_finished]
    assert left.token_times
    assert left.token_times[-1] - left_at < STOPPED_WITHIN_SECONDS


@pytest.mark.parametrize("name", ["openai_chat.py", "openai_chat.mjs", "ollama_chat.py"])
def test_without_a_key_nothing_is_answered(http: dict[str, str], name: str) -> None:
    without = {name: value for name, value in http.items() if not name.endswith("_API_KEY")}
    with pytest.raises(AssertionError, match="API key"):
        run_example(name, environ=without)


def test_an_answer_is_json_of_a_schema_or_the_schema_is_refused(http: dict[str, str]) -> None:
    answer, refused = run_example("openai_json.py", environ=http).text.splitlines()

    assert re.fullmatch(r"7 (plus|minus) 5: \d\d?", answer)
    assert refused == "Refused: unsupported_schema"


def test_the_llm_command_streams_goes_on_and_is_refused(http: dict[str, str]) -> None:
    first, second, *refused = run_example("llm.sh", environ=http).text.splitlines()

    assert "12" in first
    assert "23" in second
    assert "gpt-4" in " ".join(refused)
    assert refused[-1] == "Refused."


def test_the_programs_of_mosquitto_ask_stream_and_cancel(
    fog: RunningFog, mqtt: dict[str, str]
) -> None:
    with every_token(fog) as answers:
        run = run_example("mosquitto.sh", environ=mqtt)

    whole, *messages = [json.loads(line.text) for line in run.lines]
    assert "12" in whole["choices"][0]["message"]["content"]
    ends = {m["request_id"]: m for m in messages if m.get("done")}
    assert list(ends) == ["stream", "wrong", "long"]
    assert ends["stream"]["finish_reason"] == "stop"
    assert ends["wrong"]["error"]["code"] == "model_not_found"
    assert ends["long"]["error"]["code"] == "cancelled"
    assert [answer.is_finished for answer in answers.values()] == [True, True, False]


def test_the_program_for_a_board_asks_over_mqtt(fog: RunningFog, tmp_path: Path) -> None:
    address = fog.address("app")
    write_board_config(tmp_path, address)
    modules = os.pathsep.join([str(tmp_path), str(MICROPYTHON)])

    run = run_example("micropython_prompt.py", environ={"PYTHONPATH": modules})

    answer, tokens = run.text.splitlines()
    assert "12" in answer
    assert tokens.endswith(" tokens")


def test_the_program_for_a_board_runs_in_micropython(tmp_path: Path) -> None:
    config = write_board_config(tmp_path, BrokerAddress("fog.local", 1883, "app", "secret"))
    interpreter = FOLDER / "node_modules" / "@micropython" / "micropython-webassembly-pyscript"
    modules = {"fog_config.py": config, "umqtt/simple.py": MICROPYTHON / "board/umqtt/simple.py"}

    run = run_program(
        PROGRAMS / "node",
        MICROPYTHON / "board.mjs",
        interpreter / "micropython.mjs",
        FOLDER / "micropython_prompt.py",
        *(f"{name}={path}" for name, path in modules.items()),
    )

    connect, subscribe, publish, *rest = run.text.splitlines()
    assert connect == "connect fog.local 1883 app secret"
    assert subscribe == f"subscribe {REPLY.path(SITE, client='app', request='board')} 1"
    assert publish.startswith(f"publish {PROMPT.path(SITE, client='app')} 1 {{")
    assert json.loads(publish.split(maxsplit=3)[3])["stream"] is True
    assert rest == ["It is 12 €.", "5 tokens"]


def write_board_config(folder: Path, address: BrokerAddress) -> Path:
    """Write the file that lies beside the program on a board."""
    path = folder / "fog_config.py"
    path.write_text(
        f"HOST, PORT = {address.host!r}, {address.port}\n"
        f"USER, PASSWORD = {address.username!r}, {address.password!r}\n"
    )
    return path
