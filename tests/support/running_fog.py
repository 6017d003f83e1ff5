"""A whole fog as its user has it: `e2llm up` as a process, asked and hurt from outside."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from broker.address import BrokerAddress
from broker.credentials import load_credentials
from broker.mqtt import MqttTransport
from broker.transport import Connected
from fog.answer import Answer
from fog.client import FogClient, FogUnreachableError, Question
from fog.ports import free_port
from fog.state import StateFolder
from tests.support.bus import wait_for

ROOT: Final = Path(__file__).parents[2]
SITE: Final = "local"
# Long, since a test machine may be busy; nobody waits for it unless something is wrong.
PATIENCE_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0


@dataclass
class RunningFog:
    """`e2llm up` with a port and a state folder of its own.

    Attributes:
        url: Of the gateway.
        output: File with what `up` printed.
    """

    url: str
    state: StateFolder
    process: subprocess.Popen[bytes]
    output: Path
    client: FogClient = field(init=False)

    def __post_init__(self) -> None:
        # However busy the machine that runs the tests is.
        self.client = FogClient(self.url, look_seconds=60.0)

    # --- what is asked -----------------------------------------------------------------------

    @property
    def model(self) -> str:
        """Name of the model that is served."""
        return self.client.model()

    def ask(self, prompt: str, **options: Any) -> Answer:
        """Ask a question as a chat."""
        question = Question(messages=[{"role": "user", "content": prompt}], **options)
        return self.client.ask(question, self.model)

    def plan(self) -> dict[str, Any]:
        """Return ``GET /fog/plan``."""
        return self.client.plan()

    def devices(self) -> dict[str, dict[str, Any]]:
        """Return ``GET /fog/devices`` by id."""
        return {device["id"]: device for device in self.client.devices()}

    def replica(self, role: str) -> dict[str, Any]:
        """Return the first replica of that role in the plan."""
        found: dict[str, Any] = next(r for r in self.plan()["replicas"] if r["role"] == role)
        return found

    # --- processes and files -----------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        """Return the process ids of the children by the names that their logs have."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                if name := _name_of(child):
                    found[name] = child.pid
            except psutil.NoSuchProcess:
                continue
        return found

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a child: what it was told."""
        return psutil.Process(self.pids()[name]).environ()

    @property
    def redis_url(self) -> str:
        """Redis with its password."""
        return self.environment("gateway")["E2LLM_REDIS"]

    def log(self, name: str) -> str:
        """Return the log of a child."""
        return (self.state.logs / f"{name}.log").read_text("utf-8", errors="replace")

    def logs(self) -> dict[str, str]:
        """Return all logs by name."""
        return {path.stem: self.log(path.stem) for path in sorted(self.state.logs.glob("*.log"))}

    # --- the bus -----------------------------------------------------------------------------

    def address(self, user: str) -> BrokerAddress:
        """Return the broker's address with the credential of a device or service."""
        own = BrokerAddress.parse(self.environment("gateway")["E2LLM_BROKER"])
        credential = load_credentials(self.state.broker / "credentials.json")[user]
        return BrokerAddress(own.host, own.port, user, credential.password)

    @contextmanager
    def bus(self, user: str, **options: Any) -> Iterator[MqttTransport]:
        """Connect beside a device or service, with its credential and a client id of our own."""
        transport = MqttTransport(self.address(user), f"test-as-{user}", **options)
        transport.connect()
        try:
            wait_for(transport, Connected)
            yield transport
        finally:
            transport.close()

    # --- waiting -----------------------------------------------------------------------------

    def until(
        self,
        condition: Callable[[], object],
        what: str,
        timeout_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """Ask again and again until the condition holds; nothing tells us from outside."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"`e2llm up` has ended\n{self.output.read_text()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain until {what}\n{self._tails()}")
            time.sleep(0.05)

    def until_none_of(self, obstacles: Callable[[], list[str]], what: str) -> None:
        """Ask again and again until nothing is in the way any more."""
        last: list[str] = []

        def is_free() -> bool:
            last[:] = obstacles()
            return not last

        try:
            self.until(is_free, f"nothing {what}")
        except AssertionError as error:
            raise AssertionError(f"{', '.join(last)} {what}; {error}") from error

    def wait_until_whole(self) -> None:
        """Wait until every replica of the active plan is complete, with both roles there."""
        self.until(self.is_whole, "every replica is complete")

    def is_whole(self) -> bool:
        """Return whether every device is there and every replica of the plan complete."""
        try:
            plan, devices = self.plan(), self.devices()
        except FogUnreachableError:
            return False
        replicas = plan["replicas"]
        planned = {stage["device"] for replica in replicas for stage in replica["stages"]}
        planned |= {idle["device"] for idle in plan["idle"]}
        return (
            plan["state"] == "active"
            and plan["preparing"] is None
            and {"prefill", "decode"} <= {replica["role"] for replica in replicas}
            and all(replica["complete"] for replica in replicas)
            and all(device["state"] == "ready" for device in devices.values())
            # Who has just come back gets a place, or is left idle, with the next plan.
            and planned == set(devices)
        )

    def _tails(self) -> str:
        tails = {name: text[-1500:] for name, text in self.logs().items()}
        return "\n".join(f"--- {name}\n{tail}" for name, tail in tails.items())


@contextmanager
def running_fog(folder: Path, *options: str) -> Iterator[RunningFog]:
    """Run `e2llm up` while the block lasts, then stop it as a person does, with Ctrl-C.

    Raises:
        AssertionError: It did not become ready, did not end well, or left a process behind.
    """
    state = StateFolder(folder / "state")
    port = free_port(random.SystemRandom())
    output = folder / "up.log"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [*up_command(port, state.path), *options],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=ROOT,
        )
    fog = RunningFog(f"http://127.0.0.1:{port}", state, process, output)
    try:
        # Not only the gateway is ready: `up` has asked its own question and knows it too.
        fog.until(lambda: f"listens on {fog.url}" in output.read_text(), "`up` says its address")
        fog.wait_until_whole()
        yield fog
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            exit_code = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            exit_code = process.wait()
    assert exit_code == 0, output.read_text()
    assert [p.cmdline() for p in processes_of(state.path)] == []


def up_command(port: int, state: Path, python: str = sys.executable) -> list[str]:
    """Return the command that starts a fog."""
    return [python, "-m", "fog", "up", "--port", str(port), "--state", str(state)]


@dataclass(frozen=True)
class Outcome:
    """How an `e2llm up --once` ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> dict[str, Any]:
        """What ``--json -`` wrote: one object and nothing else, or this raises."""
        assert self.exit_code == 0, self.stderr
        answer: dict[str, Any] = json.loads(self.stdout)
        return answer


def up_once(
    folder: Path,
    prompt: str,
    *options: str,
    command: Sequence[str] | None = None,
    cwd: Path = ROOT,
    environ: Mapping[str, str] | None = None,
) -> Outcome:
    """Run `e2llm up --once PROMPT --json -` to its end.

    Args:
        folder: Gets the state folder.
        command: Starts `e2llm`; by default this interpreter with our checkout.
        cwd: The current folder of the run.
        environ: Added to the environment.
    """
    state = folder / "state"
    port = free_port(random.SystemRandom())
    if command is None:
        argv = up_command(port, state)
    else:
        argv = [*command, "up", "--port", str(port), "--state", str(state)]
    process = subprocess.run(
        [*argv, "--once", prompt, "--json", "-", *options],
        env={**environment(), **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=100,
        check=False,
    )
    assert [p.cmdline() for p in processes_of(state)] == []
    return Outcome(process.returncode, process.stdout, process.stderr)


def environment() -> Mapping[str, str]:
    """Return this process's environment without what is meant for fogs and hub clients."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("E2LLM_", "HF_"))}


def processes_of(state: Path) -> list[psutil.Process]:
    """Return the processes that were started with a state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any(word.startswith(str(state)) for word in words):
            found.append(process)
    return found


def _name_of(child: psutil.Process) -> str | None:
    """Return a child's name; None for the guard."""
    words = child.cmdline()
    if "-m" in words:
        module = words[words.index("-m") + 1]
        return child.environ()["E2LLM_NODE_ID"] if module == "nodes" else module
    return "redis" if any("valkey" in word or "redis" in word for word in words) else None
