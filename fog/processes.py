"""A supervisor of child processes: order of start, readiness, restarts, an ordered stop.

Every child leads a process group of its own, so what it starts ends with it. A guard
process (`fog.guard`) ends all groups when the supervisor itself is killed. The
supervisor knows nothing of brokers, planners or nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from fog import guard
from fog.logs import LineSink, ProcessLog, pump
from fog.restarts import RestartPolicy

PROBE_INTERVAL_SECONDS: Final = 0.05

Probe = Callable[[], Awaitable[bool]]
"""Whether a process answers now; it never raises for a process that does not answer yet."""


class ProcessState(StrEnum):
    """Where a child is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class ProcessFailedError(Exception):
    """A child ended again and again before the fog was ready.

    Attributes:
        name: Name of the process.
        log_path: Where its whole log is.
    """

    def __init__(self, name: str, exit_code: int, last_lines: list[str], log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        lines = "\n".join(f"    {line}" for line in last_lines) or "    (it printed nothing)"
        super().__init__(
            f"{name} {describe_exit(exit_code)}. Its last lines:\n{lines}\n  Whole log: {log_path}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What to start.

    Attributes:
        name: Unique; the prefix of its log lines.
        environ: The whole environment of the child.
        after: Names of processes that must be ready before this one starts.
        probe: Ready when it returns true; None: ready as soon as it runs.
        stop_rank: Ranks are stopped one after the other, lower ones first.
        stop_seconds: Time from SIGTERM to SIGKILL.
    """

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    after: tuple[str, ...] = ()
    probe: Probe | None = None
    stop_rank: int = 0
    stop_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """A child changed its state; ``detail`` says why where that is of interest."""

    name: str
    state: ProcessState
    detail: str = ""


@dataclass(slots=True)
class _Child:
    spec: ProcessSpec
    log: ProcessLog
    state: ProcessState = ProcessState.WAITING
    process: asyncio.subprocess.Process | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    crashes: int = 0
    task: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps a set of children running.

    Args:
        specs: The children; names are unique, ``after`` names others of them.
        log_folder: Gets one log file per child.
        observe: Called on the event loop with every change of state.
        sink: Called with every line of output; None: lines go to the files only.
        policy: When a child is started again.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        log_folder: Path,
        *,
        observe: Callable[[ProcessEvent], None] = lambda event: None,
        sink: LineSink | None = None,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._policy = policy or RestartPolicy()
        self._observe = observe
        self._sink = sink
        self._children = {s.name: _Child(s, ProcessLog(log_folder, s.name)) for s in specs}
        self._guard: subprocess.Popen[bytes] | None = None
        self._fog_was_ready = False
        self._stopping = asyncio.Event()
        self._failed: asyncio.Future[ProcessFailedError] | None = None

    def start(self) -> None:
        """Begin to start all children; returns at once."""
        self._failed = asyncio.get_running_loop().create_future()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        for child in self._children.values():
            child.task = asyncio.create_task(self._keep(child), name=f"keep {child.spec.name}")

    def tolerate_crashes(self) -> None:
        """From now on restart for ever: the fog has been ready, devices may come and go."""
        self._fog_was_ready = True

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now."""
        return {
            name: child.process.pid
            for name, child in self._children.items()
            if child.process is not None and child.process.returncode is None
        }

    def tail(self, name: str) -> list[str]:
        """Return the last log lines of a child."""
        return self._children[name].log.tail()

    async def failure(self) -> ProcessFailedError:
        """Wait until a child has failed for good."""
        assert self._failed is not None, "start() comes first"
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """Stop all children, rank by rank; afterwards none of their groups exists."""
        self._stopping.set()
        ranks = sorted({child.spec.stop_rank for child in self._children.values()})
        for rank in ranks:
            group = [c for c in self._children.values() if c.spec.stop_rank == rank]
            await asyncio.gather(*(self._stop(child) for child in group))
        if self._guard is not None and self._guard.stdin is not None:
            # Nothing is registered any more: the guard ends at once.
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()
            await asyncio.to_thread(self._guard.wait)

    def kill(self) -> None:
        """End every child now, without grace; for a person who cannot wait for `stop`."""
        self._stopping.set()
        for child in self._children.values():
            if child.process is not None:
                _signal_group(child.process.pid, signal.SIGKILL)

    async def _keep(self, child: _Child) -> None:
        """Start a child when its turn has come, and again when it ends unasked."""
        for name in child.spec.after:
            await self._children[name].ready.wait()
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                exit_code = await self._run_once(child)
            except OSError as error:
                child.log.write(f"cannot be started: {error}\n".encode())
                exit_code = 127
            if self._stopping.is_set():
                return
            child.ready.clear()
            child.crashes = self._policy.count(child.crashes, time.monotonic() - started)
            delay = self._policy.delay_seconds(
                child.crashes, exit_code, fog_was_ready=self._fog_was_ready
            )
            if delay is None:
                self._fail(child, exit_code)
                return
            detail = f"{describe_exit(exit_code)}; starts again in {delay:g} s"
            child.log.note(detail)
            self._change(child, ProcessState.RESTARTING, detail)
            await asyncio.sleep(delay)

    async def _run_once(self, child: _Child) -> int:
        """Run a child until it ends and return its exit code; leave nothing of its group."""
        self._change(child, ProcessState.STARTING)
        process = await asyncio.create_subprocess_exec(
            *child.spec.argv,
            env=dict(child.spec.environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        child.process = process
        self._tell_guard("+", process.pid)
        assert process.stdout is not None
        output = asyncio.create_task(pump(process.stdout, child.log, self._sink))
        probing = asyncio.create_task(self._probe(child))
        try:
            return await process.wait()
        finally:
            probing.cancel()
            # What the child started itself must not outlive it: it would hold its port,
            # and the pipe that is read below.
            _signal_group(process.pid, signal.SIGKILL)
            self._tell_guard("-", process.pid)
            await asyncio.gather(output, probing, return_exceptions=True)

    async def _probe(self, child: _Child) -> None:
        while child.spec.probe is not None and not await child.spec.probe():
            await asyncio.sleep(PROBE_INTERVAL_SECONDS)
        child.ready.set()
        self._change(child, ProcessState.READY)

    async def _stop(self, child: _Child) -> None:
        process, task = child.process, child.task
        if process is not None and process.returncode is None:
            # Its leader alone: a parent stops its own children better than we could. Not with
            # `process.terminate`, which looks for the exit status first: of a child that ends
            # at this moment it takes the status away from asyncio, which then makes one up.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            if task is not None:
                await asyncio.wait([task], timeout=child.spec.stop_seconds)
            if process.returncode is None:
                child.log.note(f"did not stop within {child.spec.stop_seconds:g} s; killed")
                _signal_group(process.pid, signal.SIGKILL)
                if task is not None:
                    await asyncio.wait([task], timeout=child.spec.stop_seconds)
        if task is not None:
            # It waits for others, or for its next restart.
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if child.state is not ProcessState.FAILED:
            self._change(child, ProcessState.STOPPED)
        child.log.close()

    def _fail(self, child: _Child, exit_code: int) -> None:
        self._change(child, ProcessState.FAILED, describe_exit(exit_code))
        error = ProcessFailedError(child.spec.name, exit_code, child.log.tail(), child.log.path)
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)

    def _change(self, child: _Child, state: ProcessState, detail: str = "") -> None:
        child.state = state
        self._observe(ProcessEvent(child.spec.name, state, detail))

    def _tell_guard(self, sign: str, group: int) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        # A guard that somebody killed is missed only if this process is killed as well.
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(f"{sign}{group}\n".encode())
            self._guard.stdin.flush()


def describe_exit(exit_code: int) -> str:
    """Return what an exit code says, in words."""
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"


def _signal_group(group: int, number: int) -> None:
    # macOS answers PermissionError for a group of which only a zombie is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
