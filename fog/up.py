"""`e2llm up`: a whole fog on this machine, from the first process to the last.

Prepares state, ports and credentials, lets the supervisor keep the processes running,
waits until the gateway says that it is ready, asks a question, and stops everything when
it is told to. What the processes are is in `fog.services`, how they are kept in
`fog.processes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from broker.credentials import write_private
from fog.answer import Answer
from fog.broker_choice import broker_text
from fog.client import FogClient, FogRequestError, FogUnreachableError, Question, Readiness
from fog.config import demand_warning, load_config
from fog.doctor import num_usable_cores
from fog.model_choice import choose_model
from fog.output import write_json
from fog.patience import Patience, Standstill
from fog.ports import LOOPBACK, check_port
from fog.preparation import UpOptions, prepare
from fog.processes import ProcessEvent, ProcessSpec, ProcessState, Supervisor
from fog.progress import Snapshot, make_display
from fog.services import build_specs
from fog.settable import gateway_settable, planner_settable
from fog.state import StateFolder, default_state
from fog.verdict import final_reason
from fog.welcome import activation, answer_figures, print_next_steps, print_welcome

POLL_SECONDS: Final = 0.2
HOPELESS_SECONDS: Final = 6.0
"""How long a reason that waiting cannot mend must stand, with nothing moving, to be believed."""
EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


class FogNotReadyError(Exception):
    """The fog did not become ready in time, or cannot. The message says why."""


def run_up(options: UpOptions, console: Console) -> int:
    """Run a fog until it is stopped, or until ``--once`` has its answer; the exit code.

    Raises:
        ConfigError, ModelChoiceError: Something is written wrongly.
        DemoModelMissingError, PortBusyError, StateError, RedisMissingError: Something is
            missing or in the way.
        ProcessFailedError, FogNotReadyError, FogRequestError: The fog did not come up.
    """
    config = load_config(options.fog, planner=planner_settable(), gateway=gateway_settable())
    model = choose_model(options.model)
    check_port(options.port)
    folder = (
        StateFolder(options.state) if options.state else default_state(options.port, os.environ)
    )
    with folder.locked():
        plan = prepare(config, model, options, folder)
        if warning := demand_warning(config, num_usable_cores()):
            console.print(f"Warning: {warning}", style="yellow", markup=False, highlight=False)
        console.print(
            f"Starting {len(config.devices)} devices from {config.path.name}; "
            f"logs in {folder.logs}\nMQTT broker: {broker_text()}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if plan.home is not None:
            console.print(
                f"Home Assistant: broker, user and password in {folder.home_assistant_url}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        devices = frozenset(device.id for device in config.devices)
        run = FogRun(
            options,
            build_specs(plan),
            folder,
            model.question,
            console,
            devices,
            key=plan.admin_key,
        )
        return asyncio.run(run.run())


class FogRun:
    """One run of a fog on one event loop.

    Args:
        specs: The processes; one is named ``gateway`` and listens on the port in ``options``.
        question: Asked when the fog is ready, unless ``options`` has another one.
        devices: Ids of the devices among the processes.
        key: API key for the gateway, where it needs one.
    """

    def __init__(
        self,
        options: UpOptions,
        specs: Sequence[ProcessSpec],
        folder: StateFolder,
        question: str,
        console: Console,
        devices: Collection[str] = (),
        *,
        key: str | None = None,
    ) -> None:
        self._options = options
        self._devices = devices
        self._folder = folder
        self._question = options.once if options.once is not None else question
        self._console = console
        self._client = FogClient(
            f"http://{LOOPBACK}:{options.port}",
            key=key,
            timeout_seconds=options.timeout_seconds,
            look_seconds=options.timeout_seconds,
        )
        self._started_at = time.monotonic()
        self._states = {spec.name: ProcessState.WAITING for spec in specs}
        self._details: dict[str, str] = {}
        self._was_ready = False
        self._supervisor = Supervisor(
            specs,
            folder.logs,
            observe=self._observe,
            sink=self._print_log_line if options.verbose else None,
        )

    async def run(self) -> int:
        """Start, serve, stop; return the exit code. No child is left, however this ends.

        Raises:
            ProcessFailedError: A child ended again and again.
            FogNotReadyError: Nothing advanced for too long, or waiting is in vain.
        """
        with _stop_signals(self._supervisor) as stop:
            self._supervisor.start()
            serving = asyncio.create_task(self._serve())
            stopping = asyncio.create_task(stop.wait())
            failing = asyncio.create_task(self._supervisor.failure())
            try:
                await asyncio.wait(
                    {serving, stopping, failing}, return_when=asyncio.FIRST_COMPLETED
                )
                if serving.done():
                    return serving.result()
                if failing.done():
                    raise failing.result()
                self._console.print("\nStopping ...", highlight=False)
                return EXIT_OK if self._was_ready else EXIT_INTERRUPTED
            finally:
                for task in (serving, stopping, failing):
                    task.cancel()
                await asyncio.gather(serving, stopping, failing, return_exceptions=True)
                await self._supervisor.stop()

    async def _serve(self) -> int:
        await self._wait_until_ready()
        self._was_ready = True
        self._supervisor.tolerate_crashes()
        fog_plan = await asyncio.to_thread(self._client.plan)
        model = await asyncio.to_thread(self._client.model)
        ready_seconds = time.monotonic() - self._started_at
        if self._options.once is None:
            print_welcome(self._console, fog_plan, ready_seconds, self._question)
        elif self._options.json_target is None:
            self._console.print(f"Ready after {ready_seconds:.1f} s.", highlight=False)
        answer = await asyncio.to_thread(self._ask, model)
        self._console.print(f"\n[dim]{answer_figures(answer)}[/dim]", highlight=False)
        # Asked again: now it says what was measured, beside what was predicted.
        fog_plan = await asyncio.to_thread(self._client.plan)
        write_json(self._options.json_target, answer_object(answer, fog_plan))
        if self._options.once is not None:
            return EXIT_OK
        activate = activation(Path(sys.prefix), os.environ.get("PATH"))
        print_next_steps(
            self._console,
            self._client.url,
            model,
            self._question,
            activate,
            needs_key=self._client.key is not None,
        )
        await asyncio.Event().wait()
        return EXIT_OK

    def _ask(self, model: str) -> Answer:
        question = Question(
            messages=[{"role": "user", "content": self._question}],
            max_tokens=self._options.max_tokens,
        )
        return self._client.ask(question, model, self._print_answer_text)

    async def _wait_until_ready(self) -> None:
        """Show progress until ``/readyz`` says 200.

        Raises:
            FogNotReadyError: Nothing has advanced for too long, or waiting is in vain.
        """
        patience = Patience(self._options.timeout_seconds, time.monotonic())
        standstill = Standstill(HOPELESS_SECONDS)
        display = make_display(self._console, live=not self._options.verbose)
        with contextlib.closing(display):
            while True:
                snapshot = await self._snapshot()
                display.update(snapshot)
                if snapshot.readiness is not None and snapshot.readiness.ready:
                    return
                reason = final_reason(snapshot, self._devices)
                state = (reason, snapshot.advance) if reason is not None else None
                if standstill.has_lasted(state, time.monotonic()):
                    raise FogNotReadyError(
                        f"the fog cannot become ready: {reason}\n  Logs: {self._folder.logs}"
                    )
                if patience.is_out(snapshot.advance, time.monotonic()):
                    raise FogNotReadyError(
                        f"the fog was not ready, and nothing advanced for "
                        f"{self._options.timeout_seconds:g} s: {snapshot.headline}\n"
                        f"  Logs: {self._folder.logs}; more time: --timeout SECONDS"
                    )
                await asyncio.sleep(POLL_SECONDS)

    async def _snapshot(self) -> Snapshot:
        readiness: Readiness | None = None
        devices: list[dict[str, Any]] = []
        if self._states.get("gateway") is ProcessState.READY:
            with contextlib.suppress(FogUnreachableError, FogRequestError):
                readiness = await asyncio.to_thread(self._client.readiness)
                devices = await asyncio.to_thread(self._client.devices)
        return Snapshot(
            elapsed_seconds=time.monotonic() - self._started_at,
            processes=dict(self._states),
            details=dict(self._details),
            readiness=readiness,
            devices=devices,
        )

    def _observe(self, event: ProcessEvent) -> None:
        before = self._states.get(event.name)
        self._states[event.name] = event.state
        self._details[event.name] = event.detail
        if event.state in {ProcessState.READY, ProcessState.RESTARTING}:
            write_private(self._folder.processes, json.dumps(self._supervisor.pids) + "\n")
        if not self._was_ready:
            return
        if event.state is ProcessState.RESTARTING:
            self._console.print(f"[yellow]{event.name}[/yellow] {event.detail}", highlight=False)
        elif event.state is ProcessState.READY and before is ProcessState.STARTING:
            self._console.print(f"[green]{event.name}[/green] runs again", highlight=False)

    def _print_log_line(self, name: str, line: str) -> None:
        self._console.print(
            f"{name:>14} | {line}", markup=False, highlight=False, soft_wrap=True, emoji=False
        )

    def _print_answer_text(self, text: str) -> None:
        self._console.print(
            text, end="", markup=False, highlight=False, soft_wrap=True, emoji=False
        )


def answer_object(answer: Answer, fog_plan: dict[str, Any]) -> dict[str, Any]:
    """Return what ``--json`` writes."""
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "ttft_seconds": answer.ttft_seconds,
        "tpot_seconds": answer.tpot_seconds,
        "plan": fog_plan,
    }


@contextlib.contextmanager
def _stop_signals(supervisor: Supervisor) -> Iterator[asyncio.Event]:
    """Set the event on Ctrl-C, SIGTERM or a closed terminal; kill on the second one."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def request_stop() -> None:
        if stop.is_set():
            supervisor.kill()
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, request_stop)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
