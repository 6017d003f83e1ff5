"""The command line: exit codes, JSON on standard output, and `up` from start to stop.

`up` runs here with a fake gateway and small children instead of a fog; the whole fog is
started in tests/pipeline.
"""

import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fog import model_choice, up
from fog.chat import run_chat
from fog.cli import missing_module_text
from fog.client import FogClient
from fog.commands import app
from fog.model_choice import DemoModelMissingError
from fog.ports import free_port
from fog.preparation import UpOptions
from fog.probes import http_probe
from fog.processes import ProcessFailedError, ProcessSpec
from fog.state import StateFolder
from fog.up import EXIT_INTERRUPTED, EXIT_OK, FogNotReadyError, FogRun, run_up
from tests.fog import fake_gateway
from tests.fog.fake_gateway import PLAN, Behaviour, serve
from tests.support.command_line import e2llm

SLEEP = "import time; time.sleep(60)"


def test_an_unknown_weight_format_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    result = e2llm("up", "--weights", "int5", "--state", str(tmp_path / "state"))
    assert result.returncode == 2
    assert "int5" in result.stderr
    assert "int8" in result.stderr
    assert not (tmp_path / "state").exists()


# --- commands against a running fog ------------------------------------------------------


def test_plan_and_devices_are_tables_or_json_alone_on_standard_output(tmp_path: Path) -> None:
    with serve() as url:
        table = e2llm("plan", "--url", url)
        as_json = e2llm("plan", "--json", "-", environ={"E2LLM_URL": url})
        history = e2llm("plan", "--history", "--url", url)
        to_file = e2llm("devices", "--url", url, "--json", str(tmp_path / "devices.json"))
    assert "embedding + 0-4" in table.stdout
    assert json.loads(as_json.stdout) == PLAN
    assert "the first plan" in history.stdout
    assert to_file.stdout == ""
    assert json.loads((tmp_path / "devices.json").read_text())[0]["id"] == "laptop"


def test_a_device_is_cordoned_and_drained_from_the_command_line() -> None:
    with serve() as url:
        done = e2llm("device", "cordon", "laptop", "--url", url)
        held = e2llm("device", "drain", "laptop", "--wait", "0", "--url", url)
        empty = e2llm("device", "drain", "pi", "--url", url)
        unknown = e2llm("device", "drain", "toaster", "--url", url)
    assert "laptop keeps what it has and gets nothing new" in done.stdout
    assert (held.returncode, empty.returncode, unknown.returncode) == (1, 0, 1)
    assert "laptop still holds r-1/0 after 0 s" in held.stderr
    assert "pi holds nothing and may be switched off" in empty.stdout
    assert "no device toaster" in unknown.stderr


def test_a_device_is_removed_from_the_command_line(tmp_path: Path) -> None:
    with serve() as url:
        done = e2llm("device", "remove", "laptop", "--url", url)
        more = e2llm("device", "remove", "pi", "--url", url)
        found = e2llm("device", "remove", "laptop", "--json", "-", "--url", url)
        unknown = e2llm("device", "remove", "toaster", "--url", url)
    assert done.stdout == "laptop was removed.\n"
    for part in ("The broker may still know it", "no good any more: 5a21", "when a planner runs"):
        assert part in more.stdout
    assert json.loads(found.stdout)["forgotten"] is True
    assert unknown.returncode == 1
    assert "no device toaster" in unknown.stderr


@pytest.mark.parametrize("verb", ["cordon", "uncordon", "remove", "drain"])
@pytest.mark.parametrize("name", ["", "a/b#+"])
def test_what_no_device_can_be_called_is_refused_before_the_fog_is_asked(
    verb: str, name: str
) -> None:
    result = CliRunner().invoke(app, ["device", verb, name, "--url", "http://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "no device has this name" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "command", [("chat",), ("devices",), ("bench", "serve"), ("device", "drain", "pi")]
)
def test_an_address_that_is_none_exits_with_2(command: tuple[str, ...]) -> None:
    result = e2llm(*command, "--url", "foo")
    assert result.returncode == 2
    assert "'foo' is not an address" in result.stderr


@pytest.mark.parametrize("command", ["plan", "devices", "chat"])
def test_without_a_fog_the_address_and_the_remedy_are_named_and_the_exit_code_is_3(
    command: str,
) -> None:
    url = f"http://127.0.0.1:{free_port(random.Random(3))}"
    result = e2llm(command, "--url", url)
    assert result.returncode == 3
    assert f"no fog answers at {url}" in result.stderr
    assert "e2llm up" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_mistyped_option_and_a_mistyped_fog_file_exit_with_2(tmp_path: Path) -> None:
    option = e2llm("up", "--prt", "1")
    assert option.returncode == 2
    assert "--port" in option.stderr
    fog = tmp_path / "fog.toml"
    fog.write_text('[[device]]\nid = "pi"\nmodel_memmory = "1 GiB"\n')
    mistyped = e2llm("up", "--fog", str(fog), "--state", str(tmp_path / "state"))
    assert mistyped.returncode == 2
    assert f"{fog}:3: device[0].model_memmory: unknown key" in mistyped.stderr
    assert "did you mean 'model_memory'?" in mistyped.stderr


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (("--once", ""), "the prompt is empty"),
        (("--once", "  "), "the prompt is empty"),
        (("--port", "99999"), "Invalid value for '--port'"),
        (("--port", "80a"), "Invalid value for '--port'"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_before_anything_starts(
    tmp_path: Path, option: tuple[str, str], expected: str
) -> None:
    result = e2llm("up", "--state", str(tmp_path / "state"), *option)
    assert result.returncode == 2
    assert expected in " ".join(result.stderr.split())
    assert not (tmp_path / "state").exists()


def test_a_package_without_its_model_ends_the_start_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_choice, "DEMO_MODEL", tmp_path / "fog" / "demo_model")
    state = tmp_path / "state"
    with pytest.raises(DemoModelMissingError):
        run_up(UpOptions(state=state, port=free_port(random.SystemRandom())), Console())
    assert not state.exists()


def test_a_json_file_in_a_folder_that_does_not_exist_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    result = e2llm("up", "--once", "x", "--json", str(tmp_path / "absent" / "answer.json"))
    assert result.returncode == 2
    assert "does not exist" in result.stderr


def test_a_missing_package_ends_in_one_line_that_says_what_to_install() -> None:
    text = missing_module_text(ModuleNotFoundError("no", name="torch.nn"))
    assert "'torch'" in text
    assert "pip install 'e2llm[fog]'" in text
    with pytest.raises(ModuleNotFoundError):
        missing_module_text(ModuleNotFoundError("no", name="fog.typo"))


def test_help_starts_without_torch_rich_or_a_broker() -> None:
    code = (
        "import sys; sys.argv = ['e2llm', '--help']\n"
        "from fog.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'paho', 'fastapi', 'deap', 'redis', 'numpy', 'psutil'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_chat_sends_the_conversation_so_far_until_a_new_one_is_begun() -> None:
    behaviour, output = Behaviour(), io.StringIO()
    lines = iter(["hello", "", "/help", "and now?", "/new", "again", "/quit"])
    with serve(behaviour) as url:
        run_chat(FogClient(url), Console(file=output), read_line=lambda prompt: next(lines))
    conversations = [
        [message["content"] for message in body["messages"]] for _, body in behaviour.asked
    ]
    assert conversations == [["hello"], ["hello", "Twelve.", "and now?"], ["again"]]
    assert output.getvalue().count("Twelve.") == 3


def test_a_chat_goes_on_with_the_model_to_which_the_fog_changed() -> None:
    behaviour, output = Behaviour(), io.StringIO()

    def lines() -> Iterator[str]:
        yield "hello"
        behaviour.model = "other"
        yield "and now?"
        yield "/quit"

    typed = lines()
    with serve(behaviour) as url:
        run_chat(FogClient(url), Console(file=output), read_line=lambda prompt: next(typed))
    assert [body["model"] for _, body in behaviour.asked] == ["tiny", "other"]
    assert "(the fog serves other now)" in output.getvalue()


def test_a_chat_whose_questions_come_from_a_pipe_fails_when_one_is_refused() -> None:
    with serve() as url:
        asked = ["chat", "--url", url, "--json", "-"]
        good = CliRunner().invoke(app, asked, input="hello\n")
        refused = CliRunner().invoke(app, [*asked, "--max-tokens", "9999"], input="hello\n")
    assert (good.exit_code, refused.exit_code) == (0, 1)
    assert json.loads(refused.stdout) == []
    assert "refused: max_tokens must be at most 512" in refused.stderr


# --- up ----------------------------------------------------------------------------------


def child(code: str, name: str) -> ProcessSpec:
    argv = (sys.executable, "-I", "-S", "-c", code)
    return ProcessSpec(name=name, argv=argv, environ=dict(os.environ), stop_rank=1)


def gateway(port: int, refusals: int = 0, *problem: str) -> ProcessSpec:
    return ProcessSpec(
        name="gateway",
        argv=(sys.executable, fake_gateway.__file__, str(port), str(refusals), *problem),
        environ=dict(os.environ),
        probe=http_probe("127.0.0.1", port, "/healthz"),
    )


def fog_run(
    folder: Path, options: UpOptions, *specs: ProcessSpec, devices: tuple[str, ...] = ()
) -> tuple[FogRun, io.StringIO]:
    output = io.StringIO()
    shown = Console(file=output, width=200)
    return FogRun(options, specs, StateFolder(folder), "What is 5 + 7?", shown, devices), output


@pytest.fixture
def port() -> int:
    return free_port(random.SystemRandom())


async def test_once_answers_writes_one_object_and_leaves_no_process(
    tmp_path: Path, port: int
) -> None:
    target = tmp_path / "answer.json"
    options = UpOptions(port=port, once="5 + 7 =", json_target=str(target))
    run, output = fog_run(tmp_path, options, gateway(port, refusals=2), child(SLEEP, "node"))

    assert await run.run() == EXIT_OK

    answer = json.loads(target.read_text())
    assert set(answer) == {"text", "token_ids", "ttft_seconds", "tpot_seconds", "plan"}
    assert answer["text"] == "Twelve."
    assert answer["token_ids"] == [7, 8, 9]
    assert answer["plan"] == PLAN
    assert "2 of 6 devices have measured" in output.getvalue()
    assert descendants() == []


async def test_a_ready_fog_shows_plan_answer_and_address_and_stops_on_ctrl_c(
    tmp_path: Path, port: int
) -> None:
    run, output = fog_run(tmp_path, UpOptions(port=port), gateway(port), child(SLEEP, "node"))
    running = asyncio.create_task(run.run())
    await until(output, "Ctrl-C stops everything")
    os.kill(os.getpid(), signal.SIGINT)

    assert await running == EXIT_OK

    text = output.getvalue()
    assert "embedding + 0-4" in text
    assert "What is 5 + 7?" in text
    assert "Twelve." in text
    assert f"curl http://127.0.0.1:{port}/v1/chat/completions" in text
    assert descendants() == []


async def test_ctrl_c_before_the_fog_is_ready_is_an_interruption(tmp_path: Path, port: int) -> None:
    run, output = fog_run(tmp_path, UpOptions(port=port), gateway(port, refusals=10_000))
    running = asyncio.create_task(run.run())
    await until(output, "2 of 6 devices")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == EXIT_INTERRUPTED
    assert descendants() == []


async def test_a_fog_that_does_not_advance_is_given_up_with_the_reason(
    tmp_path: Path, port: int
) -> None:
    options = UpOptions(port=port, timeout_seconds=0.5)
    run, _ = fog_run(tmp_path, options, gateway(port, refusals=10_000))
    with pytest.raises(FogNotReadyError, match="2 of 6 devices have measured") as caught:
        await run.run()
    assert str(tmp_path) in str(caught.value)
    assert descendants() == []


async def test_a_fog_that_cannot_become_ready_ends_soon_and_says_the_whole_reason_once(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "HOPELESS_SECONDS", 0.5)
    problem = f"no plan: the model needs 9.0 MB, {'and so on, ' * 20}2.0 MB are missing"
    run, output = fog_run(
        tmp_path, UpOptions(port=port), gateway(port, 10_000, problem), devices=("laptop",)
    )
    with pytest.raises(FogNotReadyError) as caught:
        await run.run()
    assert str(caught.value).count(problem) == 1
    assert "2.0 MB are missing" not in output.getvalue()
    assert output.getvalue().count("no plan: the model needs 9.0 MB") == 1
    assert descendants() == []


async def test_a_child_that_refuses_its_settings_is_named_at_once(
    tmp_path: Path, port: int
) -> None:
    code = "print('E2LLM_NODE_MEMORY is not set'); raise SystemExit(2)"
    run, _ = fog_run(tmp_path, UpOptions(port=port), gateway(port, 10_000), child(code, "pi4"))
    with pytest.raises(ProcessFailedError, match="E2LLM_NODE_MEMORY is not set") as caught:
        await run.run()
    assert caught.value.name == "pi4"
    assert descendants() == []


async def test_a_device_that_dies_in_a_ready_fog_is_reported_and_comes_back(
    tmp_path: Path, port: int
) -> None:
    code = f"import os; print(os.getpid(), flush=True); {SLEEP}"
    run, output = fog_run(
        tmp_path, UpOptions(port=port, verbose=True), gateway(port), child(code, "pi4")
    )
    running = asyncio.create_task(run.run())
    await until(output, "Ctrl-C stops everything")
    (line,) = [
        line for line in output.getvalue().splitlines() if line.startswith("           pi4 |")
    ]
    os.kill(int(line.split("|")[1]), signal.SIGKILL)
    await until(output, "pi4 runs again")
    os.kill(os.getpid(), signal.SIGINT)
    assert await running == EXIT_OK
    assert "pi4 was ended by SIGKILL; starts again in 0.5 s" in output.getvalue()


async def until(output: io.StringIO, text: str) -> None:
    """Poll: what is printed cannot be awaited."""
    async with asyncio.timeout(20):
        while text not in output.getvalue():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def others() -> set[psutil.Process]:
    """Processes that were here before the test: another module's fog may be running."""
    OTHERS.clear()
    OTHERS.update(psutil.Process().children(recursive=True))
    return OTHERS


OTHERS: set[psutil.Process] = set()


def descendants() -> list[psutil.Process]:
    """Return what the test itself has started and not stopped."""
    return [p for p in psutil.Process().children(recursive=True) if p not in OTHERS]
