"""The supervisor and its guard, tried on small children that do one thing each."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from fog import guard
from fog.processes import (
    ProcessEvent,
    ProcessFailedError,
    ProcessSpec,
    ProcessState,
    Supervisor,
    describe_exit,
)
from fog.restarts import REFUSED_SETTINGS, RestartPolicy

ROOT = Path(__file__).parents[2]
FAST = RestartPolicy(first_seconds=0.01, largest_seconds=0.02, early_crashes=3)

SLEEP = "import time; time.sleep(60)"
IGNORE_TERM = (
    "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); " + SLEEP
)


def python(
    code: str,
    name: str = "child",
    *,
    after: tuple[str, ...] = (),
    probe: Callable[[], Awaitable[bool]] | None = None,
    stop_rank: int = 0,
    stop_seconds: float = 5.0,
) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        argv=(sys.executable, "-I", "-S", "-c", code),
        environ={"PATH": os.environ["PATH"]},
        after=after,
        probe=probe,
        stop_rank=stop_rank,
        stop_seconds=stop_seconds,
    )


class Watcher:
    """Collects events and lines, and lets a test wait for one."""

    def __init__(self) -> None:
        self.events: list[ProcessEvent] = []
        self.lines: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def observe(self, event: ProcessEvent) -> None:
        self.events.append(event)
        self._changed.set()

    def sink(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def states(self, name: str) -> list[ProcessState]:
        return [event.state for event in self.events if event.name == name]


@asynccontextmanager
async def supervised(
    folder: Path, *specs: ProcessSpec
) -> AsyncIterator[tuple[Supervisor, Watcher]]:
    watcher = Watcher()
    supervisor = Supervisor(specs, folder, observe=watcher.observe, sink=watcher.sink, policy=FAST)
    supervisor.start()
    try:
        yield supervisor, watcher
    finally:
        await supervisor.stop()


async def test_a_child_starts_when_those_it_waits_for_are_ready(tmp_path: Path) -> None:
    open_gate = asyncio.Event()

    async def gate_is_open() -> bool:
        return open_gate.is_set()

    async with supervised(
        tmp_path,
        python(SLEEP, "first", probe=gate_is_open),
        python(SLEEP, "second", after=("first",)),
    ) as (_, watcher):
        await watcher.until(lambda: ProcessState.STARTING in watcher.states("first"))
        assert watcher.states("second") == []
        open_gate.set()
        await watcher.until(lambda: ProcessState.READY in watcher.states("second"))

    names = [(event.name, event.state) for event in watcher.events]
    ready, starting = ("first", ProcessState.READY), ("second", ProcessState.STARTING)
    assert names.index(ready) < names.index(starting)


async def test_a_crashed_child_is_started_again_with_a_new_process(tmp_path: Path) -> None:
    async with supervised(tmp_path, python(SLEEP)) as (supervisor, watcher):
        await watcher.until(lambda: ProcessState.READY in watcher.states("child"))
        first = supervisor.pids["child"]
        os.kill(first, signal.SIGKILL)
        await watcher.until(lambda: watcher.states("child").count(ProcessState.READY) == 2)
        second = supervisor.pids["child"]

    assert second != first
    (restart,) = [e for e in watcher.events if e.state is ProcessState.RESTARTING]
    assert restart.detail == "was ended by SIGKILL; starts again in 0.01 s"


async def test_a_child_that_keeps_crashing_before_the_fog_is_ready_is_named_with_its_last_lines(
    tmp_path: Path,
) -> None:
    code = "print('no such model: llama'); raise SystemExit(7)"
    async with supervised(tmp_path, python(code, "gateway")) as (supervisor, watcher):
        async with asyncio.timeout(20):
            failure = await supervisor.failure()

    assert isinstance(failure, ProcessFailedError)
    assert failure.name == "gateway"
    assert "exit code 7" in str(failure)
    assert "no such model: llama" in str(failure)
    assert str(tmp_path / "gateway.log") in str(failure)
    assert watcher.states("gateway").count(ProcessState.STARTING) == FAST.early_crashes


async def test_a_program_that_does_not_exist_is_a_failure_not_a_hang(tmp_path: Path) -> None:
    spec = ProcessSpec(name="ghost", argv=(str(tmp_path / "nothing"),), environ={})
    async with supervised(tmp_path, spec) as (supervisor, _):
        async with asyncio.timeout(20):
            failure = await supervisor.failure()
    assert "cannot be started" in str(failure)


async def test_once_the_fog_was_ready_no_number_of_crashes_makes_it_give_up(tmp_path: Path) -> None:
    async with supervised(tmp_path, python("raise SystemExit(1)")) as (supervisor, watcher):
        supervisor.tolerate_crashes()
        await watcher.until(lambda: watcher.states("child").count(ProcessState.STARTING) > 5)
        assert ProcessState.FAILED not in watcher.states("child")


async def test_children_are_stopped_rank_by_rank(tmp_path: Path) -> None:
    async with supervised(
        tmp_path, python(SLEEP, "broker", stop_rank=2), python(SLEEP, "node", stop_rank=1)
    ) as (_, watcher):
        await watcher.until(lambda: ProcessState.READY in watcher.states("broker"))
    stopped = [event.name for event in watcher.events if event.state is ProcessState.STOPPED]
    assert stopped == ["node", "broker"]


async def test_a_child_deaf_to_sigterm_is_killed_and_nothing_of_it_stays(tmp_path: Path) -> None:
    async with supervised(tmp_path, python(IGNORE_TERM, stop_seconds=0.2)) as (supervisor, watcher):
        await watcher.until(lambda: ("child", "deaf") in watcher.lines)
        pid = supervisor.pids["child"]
    assert not psutil.pid_exists(pid)
    assert "killed" in (tmp_path / "child.log").read_text()


async def test_a_stop_leaves_the_exit_status_to_asyncio_which_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever polls a child that has just ended takes its status away, and asyncio says
    # "Unknown child process pid ..., will report returncode 255" to the user.
    polled: list[int] = []
    monkeypatch.setattr(subprocess.Popen, "poll", lambda process: polled.append(process.pid))
    async with supervised(tmp_path, python(SLEEP)) as (supervisor, watcher):
        await watcher.until(lambda: ProcessState.READY in watcher.states("child"))
        pid = supervisor.pids["child"]
    assert not psutil.pid_exists(pid)
    assert polled == []


async def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}])\n"
        "print(child.pid, flush=True)\n"
    ) + SLEEP
    async with supervised(tmp_path, python(code)) as (_, watcher):
        await watcher.until(lambda: bool(watcher.lines))
        grandchild = int(watcher.lines[0][1])
    assert await is_gone(grandchild)


async def test_output_goes_to_a_file_and_line_by_line_to_the_console(tmp_path: Path) -> None:
    code = "import sys; print('one'); print('two', file=sys.stderr); print('x' * 200_000, end='')"
    async with supervised(tmp_path, python(code)) as (supervisor, watcher):
        supervisor.tolerate_crashes()
        await watcher.until(lambda: any("x" in line for _, line in watcher.lines))
        assert supervisor.tail("child")[-1].endswith("x")
    assert {"one", "two"} <= {line for _, line in watcher.lines}
    assert (tmp_path / "child.log").read_text().count("one\n") >= 1


async def test_no_group_survives_a_killed_supervisor(tmp_path: Path) -> None:
    """SIGKILL runs no handler: only the guard can know."""
    script = textwrap.dedent(
        f"""
        import asyncio, os, sys
        from pathlib import Path
        from fog.processes import ProcessSpec, Supervisor

        def spec(name, code):
            argv = (sys.executable, "-I", "-S", "-c", code)
            return ProcessSpec(name=name, argv=argv, environ=dict(os.environ))

        async def main():
            lines = asyncio.Queue()
            supervisor = Supervisor(
                [spec("polite", "print('up', flush=True); {SLEEP}"), spec("deaf", {IGNORE_TERM!r})],
                Path({str(tmp_path)!r}),
                sink=lambda name, line: lines.put_nowait(line),
            )
            supervisor.start()
            await lines.get()
            await lines.get()
            print(*supervisor.pids.values(), flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
        """
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        line = await process.stdout.readline()
    children = [int(pid) for pid in line.split()]
    assert len(children) == 2

    process.kill()
    await process.wait()

    async with asyncio.timeout(guard.GRACE_SECONDS + 15):
        assert [await is_gone(pid) for pid in children] == [True, True]


async def is_gone(pid: int) -> bool:
    """Poll: the end of a process that is not our child cannot be awaited."""
    for _ in range(1000):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        await asyncio.sleep(0.01)
    return False


def test_the_guard_forgets_groups_that_ended_and_ignores_a_torn_line() -> None:
    assert guard.read_groups(["+10\n", "+11\n", "-10\n", "+12"]) == {11}


def test_delays_double_up_to_a_limit_and_start_anew_after_a_healthy_run() -> None:
    policy = RestartPolicy(first_seconds=0.5, largest_seconds=3, healthy_seconds=30)
    delays = [policy.delay_seconds(n, 1, fog_was_ready=True) for n in range(1, 6)]
    assert delays == [0.5, 1, 2, 3, 3]
    assert policy.count(4, uptime_seconds=1) == 5
    assert policy.count(4, uptime_seconds=31) == 1


def test_a_process_that_refuses_its_settings_is_not_started_a_second_time() -> None:
    assert RestartPolicy().delay_seconds(1, REFUSED_SETTINGS, fog_was_ready=False) is None
    assert RestartPolicy().delay_seconds(1, REFUSED_SETTINGS, fog_was_ready=True) is not None


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (3, "ended with exit code 3"),
        (-9, "was ended by SIGKILL"),
        (-200, "was ended by signal 200"),
    ],
)
def test_an_exit_is_described_in_words(exit_code: int, words: str) -> None:
    assert describe_exit(exit_code) == words
