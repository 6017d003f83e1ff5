"""The fogs that faults can be brought to: that of `e2llm up --chaos`, and that of compose."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from broker.conditions import Condition, write_conditions
from broker.control import USUAL_LINK_BYTES_PER_SECOND
from fog.chaos.scenario import Fault, Kind
from fog.state import StateFolder

_APPEAR_SECONDS: Final = 20.0
_RESTART_SECONDS: Final = 1.0


class FaultError(Exception):
    """A fault cannot be brought to this fog. The message says why, and the remedy."""


class UnsupportedFaultError(FaultError):
    """This fog cannot have such a fault; a run goes on without it."""


class FaultyFog(Protocol):
    """What can be done to a fog; names are those of devices and services."""

    def begin(self, name: str, fault: Fault) -> None:
        """Bring a fault to a device or service.

        Raises:
            FaultError: It could not be done.
        """

    def end(self, name: str, fault: Fault) -> None:
        """Undo it; nothing to do for one that undoes itself."""

    def restore(self) -> None:
        """Undo whatever is left."""


class LocalFog:
    """The processes of `e2llm up --chaos`.

    Args:
        folder: Its state.
        links: Usual rate of each device's link, bytes per second.
    """

    def __init__(
        self,
        folder: StateFolder,
        links: dict[str, float],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder = folder
        self._links = links
        self._sleep = sleep
        self._conditions: dict[str, Condition] = {}
        self._frozen: dict[str, int] = {}

    def begin(self, name: str, fault: Fault) -> None:
        match fault.kind:
            case Kind.KILL:
                self._signal(self._pid(name), signal.SIGKILL)
            case Kind.FREEZE:
                self._frozen[name] = self._pid(name)
                self._signal(self._frozen[name], signal.SIGSTOP)
            case Kind.CUT:
                self._suffer(name, Condition(cut=True))
            case Kind.SLOW:
                self._suffer(name, Condition(slowdown=fault.times))
            case Kind.LINK:
                rate = self._links.get(name, USUAL_LINK_BYTES_PER_SECOND) / fault.times
                self._suffer(name, Condition(link_bytes_per_second=rate))

    def end(self, name: str, fault: Fault) -> None:
        if fault.kind is Kind.FREEZE:
            if (pid := self._frozen.pop(name, None)) is not None:
                self._signal(pid, signal.SIGCONT)
        elif fault.kind is not Kind.KILL:
            self._suffer(name, Condition())

    def restore(self) -> None:
        for pid in self._frozen.values():
            self._signal(pid, signal.SIGCONT)
        self._frozen.clear()
        self._conditions.clear()
        write_conditions(self._folder.conditions, {})

    def _suffer(self, name: str, condition: Condition) -> None:
        self._conditions[name] = condition
        write_conditions(self._folder.conditions, self._conditions)

    def _pid(self, name: str) -> int:
        """Return the process id, waiting while the process is being started again."""
        deadline = time.monotonic() + _APPEAR_SECONDS
        while True:
            with contextlib.suppress(OSError, ValueError):
                pids = json.loads(self._folder.processes.read_text("utf-8"))
                if name in pids:
                    return int(pids[name])
            if time.monotonic() >= deadline:
                raise FaultError(f"no process {name} runs in the fog of {self._folder.path}")
            self._sleep(0.05)

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        # The whole group: a broker is a process of ours and Mosquitto.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)


class ComposeFog:
    """The containers of ``docker compose up``.

    Args:
        folder: Where the compose file lies.
    """

    def __init__(
        self,
        folder: Path,
        run: Callable[[Sequence[str]], str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run = run or _runner(folder)
        self._sleep = sleep
        self._undo: dict[tuple[str, Kind], list[list[str]]] = {}

    def begin(self, name: str, fault: Fault) -> None:
        compose = ["docker", "compose"]
        match fault.kind:
            case Kind.KILL:
                self._run([*compose, "kill", "--signal", "KILL", name])
                # Docker takes a kill for a wish of its owner's, and starts nothing again.
                self._sleep(_RESTART_SECONDS)
                self._run([*compose, "start", name])
            case Kind.FREEZE:
                self._run([*compose, "pause", name])
                self._undo[name, fault.kind] = [[*compose, "unpause", name]]
            case Kind.CUT:
                container, network = self._place(name)
                self._run(["docker", "network", "disconnect", "--force", network, container])
                join = ["docker", "network", "connect", "--alias", name, network, container]
                self._undo[name, fault.kind] = [join]
            case Kind.SLOW:
                container = self._container(name)
                format_cpus = "{{.HostConfig.NanoCpus}}"
                cpus = int(self._run(["docker", "inspect", "--format", format_cpus, container]))
                if not cpus:
                    raise FaultError(f"{name} has no limit of cores that could be lowered")
                update = ["docker", "update", "--cpus"]
                self._run([*update, f"{cpus / 1e9 / fault.times:.3f}", container])
                self._undo[name, fault.kind] = [[*update, f"{cpus / 1e9:.3f}", container]]
            case Kind.LINK:
                raise UnsupportedFaultError(
                    "links of containers cannot be slowed; `e2llm up` has links that can"
                )

    def end(self, name: str, fault: Fault) -> None:
        for command in self._undo.pop((name, fault.kind), []):
            self._run(command)

    def restore(self) -> None:
        for commands in self._undo.values():
            for command in commands:
                with contextlib.suppress(FaultError):
                    self._run(command)
        self._undo.clear()

    def _container(self, name: str) -> str:
        found = self._run(["docker", "compose", "ps", "--all", "--quiet", name]).split()
        if not found:
            raise FaultError(f"compose has no container {name}; is the fog up?")
        return found[0]

    def _place(self, name: str) -> tuple[str, str]:
        container = self._container(name)
        names = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}"
        networks = self._run(["docker", "inspect", "--format", names, container]).split()
        if not networks:
            raise FaultError(f"the container of {name} is in no network")
        return container, networks[0]


def _runner(folder: Path) -> Callable[[Sequence[str]], str]:
    def run(command: Sequence[str]) -> str:
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        except OSError as error:
            raise FaultError(f"docker cannot be run: {error.strerror}") from error
        except subprocess.CalledProcessError as error:
            raise FaultError(f"{' '.join(command)}: {error.stderr.strip()}") from error
        return done.stdout

    return run
