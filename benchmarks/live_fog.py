"""A fog for benchmarks whose devices come, go and suffer: the processes of `e2llm up --chaos`.

Nothing is started again: here a process that ends unasked is a finding.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil

from broker.address import BrokerAddress
from broker.conditions import Condition, write_conditions
from broker.topics import PLANNER_USER
from fog.client import FogClient, FogRequestError, FogUnreachableError
from fog.config import FogConfig
from fog.model_choice import choose_model
from fog.ports import LOOPBACK, free_port
from fog.preparation import UpOptions, prepare
from fog.processes import ProcessSpec
from fog.services import NODE_STOP_RANK, build_specs
from fog.state import StateFolder

READY_SECONDS: Final = 120.0
STOP_SECONDS: Final = 8.0
LOOK_SECONDS: Final = 0.1
ON_THE_WAY: Final = "one replica after the other"
"""In the trigger of a plan on the way to another one (`planner.live.rolling`)."""

Plan = Mapping[str, Any]
"""The body of ``GET /fog/plan``."""


class LiveFog:
    """Processes, how to reach them, and what can be done to them.

    Args:
        state: Of this fog; with the same one again devices need not measure themselves anew.
        later: Devices that do not start with the others.
        broker: ``mosquitto`` or ``amqtt``.

    Attributes:
        triggers: Of the plans that `wait` saw.
        peaks: Process name to the most memory (RSS) that it was seen with, bytes.
    """

    def __init__(
        self,
        state: StateFolder,
        config: FogConfig,
        *,
        later: Collection[str] = (),
        broker: str = "mosquitto",
    ) -> None:
        options = UpOptions(port=free_port(random.SystemRandom()), chaos=True)
        plan = prepare(config, choose_model(None), options, state)
        self.url = f"http://{LOOPBACK}:{options.port}"
        self.client = FogClient(self.url)
        self.planner_address = BrokerAddress(
            LOOPBACK, plan.broker_port, PLANNER_USER, plan.passwords[PLANNER_USER]
        )
        self.devices = [device.id for device in config.devices]
        self.triggers: set[str] = set()
        self.peaks: dict[str, int] = {}
        self._state = state
        self._later = frozenset(later)
        self._conditions: dict[str, Condition] = {}
        self._specs = {spec.name: spec for spec in build_specs(plan)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._replace("broker", argv=(*self._specs["broker"].argv, "--prefer", broker))
        first = str(len(config.devices) - len(self._later))
        environ = {**self._specs["planner"].environ, "E2LLM_PLANNER_EXPECT_DEVICES": first}
        self._replace("planner", environ=environ)

    def _replace(self, name: str, **changes: Any) -> None:
        self._specs[name] = replace(self._specs[name], **changes)

    def start(self, *names: str) -> None:
        """Start processes; without names all but those of the devices that come later."""
        self._state.logs.mkdir(parents=True, exist_ok=True)
        for name in names or [n for n in self._specs if n not in self._later]:
            self._processes[name] = self._run(self._specs[name])

    def _run(self, spec: ProcessSpec) -> subprocess.Popen[bytes]:
        with (self._state.logs / f"{spec.name}.log").open("ab") as log:
            return subprocess.Popen(
                spec.argv,
                env=dict(spec.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def leave(self, *names: str) -> None:
        """Stop devices in order, as their owners would."""
        leaving = [self._processes.pop(name) for name in names]
        for process in leaving:
            process.terminate()
        for process in leaving:
            process.wait(STOP_SECONDS)

    def suffer(self, device: str, condition: Condition) -> None:
        """Let a device be in that condition from now on."""
        self._conditions[device] = condition
        write_conditions(self._state.conditions, self._conditions)

    def freeze(self, name: str) -> None:
        """Stop a process for good, and keep its connections."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def ended(self) -> list[str]:
        """Return the processes that ended unasked."""
        return sorted(n for n, process in self._processes.items() if process.poll() is not None)

    def wait(self, what: str, condition: Callable[[Plan], bool], patience: float) -> float:
        """Wait until the plan fulfils a condition; return for how many seconds.

        Raises:
            TimeoutError: It did not within ``patience`` seconds.
        """
        began = time.monotonic()
        while (waited := time.monotonic() - began) < patience:
            with contextlib.suppress(FogRequestError, FogUnreachableError):
                plan = self.client.plan()
                self.triggers.add(plan["trigger"])
                if condition(plan):
                    return waited
            time.sleep(LOOK_SECONDS)
        raise TimeoutError(f"waited {patience:g} s in vain until {what}: {self.client.plan()}")

    def wait_until_ready(self) -> None:
        """Wait for the first plan that serves.

        Raises:
            TimeoutError: None came.
        """
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(FogUnreachableError):
                if self.client.readiness().ready:
                    return
            time.sleep(LOOK_SECONDS)
        raise TimeoutError(f"no fog at {self.url}; logs in {self._state.logs}")

    def settle(self, calm_seconds: float, patience: float) -> float:
        """Wait until the plan has stayed the same for a while; return for how many seconds.

        A fog plans again when it has seen how long hops take under load. After ``patience``
        what there is must do.
        """
        began = changed = time.monotonic()
        known: object = None
        while (now := time.monotonic()) - began < patience and now - changed < calm_seconds:
            plan = self.client.plan()
            seen = plan["version"], plan["preparing"] is None
            if seen != known:
                known, changed = seen, now
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - began

    @contextlib.contextmanager
    def watched_memory(self) -> Iterator[None]:
        """Note the peaks of all processes while the block lasts."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(LOOK_SECONDS):
                for name, process in list(self._processes.items()):
                    with contextlib.suppress(psutil.Error):
                        used = psutil.Process(process.pid).memory_info().rss
                        self.peaks[name] = max(used, self.peaks.get(name, 0))

        thread = threading.Thread(target=watch, name="memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def stop(self) -> None:
        """Stop everything."""
        for rank in (range(NODE_STOP_RANK), range(NODE_STOP_RANK, 10)):
            leaving = [n for n in self._processes if self._specs[n].stop_rank in rank]
            for name in leaving:
                self._processes[name].terminate()
                self._processes[name].send_signal(signal.SIGCONT)
            for name in leaving:
                try:
                    self._processes[name].wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    self._processes[name].kill()
                    self._processes[name].wait()
        self._processes.clear()


@contextlib.contextmanager
def live_fog(folder: Path, config: FogConfig, **options: Any) -> Iterator[LiveFog]:
    """Run a fog while the block lasts, from its first plan on; options are those of `LiveFog`."""
    os.environ.setdefault("E2LLM_LOG", "INFO")
    state = StateFolder(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fog = LiveFog(state, config, **options)
    fog.start()
    try:
        fog.wait_until_ready()
        yield fog
    finally:
        fog.stop()


def is_settled(plan: Plan) -> bool:
    """Whether a plan serves and is not one on the way to another."""
    return (
        plan["state"] == "active"
        and plan["preparing"] is None
        and ON_THE_WAY not in plan["trigger"]
    )


def devices_of(plan: Plan) -> set[str]:
    """Return the devices with a stage."""
    return {stage["device"] for replica in plan["replicas"] for stage in replica["stages"]}


def text_of(plan: Plan) -> str:
    """Return who does what, in one line."""
    replicas = [
        f"{replica['role']}: " + " + ".join(stage["device"] for stage in replica["stages"])
        for replica in plan["replicas"]
    ]
    return f"plan {plan['version']}, {'; '.join(sorted(replicas))}"
