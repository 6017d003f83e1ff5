"""`e2llm chaos` from the scenario to the report."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fog.chaos.director import RECOVERY_SECONDS, Director
from fog.chaos.load import Job, Load, Outcome, answer_undisturbed, make_bodies
from fog.chaos.replay import ties
from fog.chaos.report import Incident, Judged, Report
from fog.chaos.scenario import DEVICES_ONLY, Scenario, check_targets
from fog.chaos.testbed import ComposeFog, FaultyFog, LocalFog
from fog.chaos.verdict import Gap, judge
from fog.chaos.watch import Watch
from fog.client import FogClient, FogUnreachableError
from fog.config import load_config
from fog.model_choice import choose_model
from fog.ports import LOOPBACK, free_port
from fog.services import WIRES, child_environ, python_command
from fog.state import StateFolder

READY_SECONDS: Final = 180.0
_START_NOTICE_SECONDS: Final = 0.2
SCENARIOS: Final = Path(__file__).parent / "scenarios"


class ChaosError(Exception):
    """A run could not be made. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """What the command line says.

    Attributes:
        url: Of a fog that runs already; None: one is started for the run.
        key: API key for it, where it needs one.
        state: State folder of a fog that runs already under ``e2llm up --chaos``.
        compose: Folder of a compose file whose fog runs already.
        fog, weights: Of the fog that is started.
        model: What it serves; of a fog that runs already, what near ties are judged by.
    """

    scenario: Scenario
    url: str | None = None
    key: str | None = None
    state: Path | None = None
    compose: Path | None = None
    fog: Path
    model: str | None = None
    weights: str | None = None


def run_chaos(options: ChaosOptions, console: Console) -> Report:
    """Run a scenario and judge every answer.

    Raises:
        ChaosError: The fog does not come up, or a fault cannot be brought to it.
        ConfigError: The fog file is wrong.
        FogUnreachableError, FogRequestError: It does not answer before any fault.
    """
    config = load_config(options.fog)
    links = {
        device.id: device.link_bytes_per_second
        for device in config.devices
        if device.link_bytes_per_second is not None
    }
    with ExitStack() as stack:
        url, testbed = options.url, _attached(options, links)
        if url is None or testbed is None:
            check_targets(options.scenario, [device.id for device in config.devices])
            url, state = stack.enter_context(_own_fog(options, console))
            testbed = LocalFog(state, links)
            client = _patient_client(url, options.key)
        else:
            client = _patient_client(url, options.key)
            _check_running(options, client)
        return _run(options.scenario, client, testbed, choose_model(options.model).source, console)


def _patient_client(url: str, key: str | None) -> FogClient:
    """Return a client that waits for a gateway that faults and load have slowed."""
    return FogClient(url, key=key, look_seconds=60.0)


def _attached(options: ChaosOptions, links: dict[str, float]) -> FaultyFog | None:
    if options.compose is not None:
        return ComposeFog(options.compose)
    if options.state is None:
        return None
    folder = StateFolder(options.state)
    if not folder.processes.is_file():
        raise ChaosError(f"no fog runs on {folder.path}; start one with: e2llm up --chaos")
    return LocalFog(folder, links)


def _check_running(options: ChaosOptions, client: FogClient) -> None:
    """Return if the scenario can happen to a fog that runs already."""
    devices = client.devices()
    check_targets(options.scenario, [device["id"] for device in devices])
    if options.state is not None:
        pids = json.loads(StateFolder(options.state).processes.read_text("utf-8"))
        check_state(options.scenario, client.url, options.state, pids, devices)


def check_state(
    scenario: Scenario,
    url: str,
    state: Path,
    pids: Mapping[str, int],
    devices: Sequence[Mapping[str, Any]],
) -> None:
    """Return if a state folder is that of the fog which answers, and its devices can be harmed.

    Args:
        scenario: What is to happen.
        url: Where the fog answers.
        state: The folder.
        pids: Of the processes that the folder names.
        devices: Body of ``GET /fog/devices``.

    Raises:
        ChaosError: Faults would meet another fog than the load, or nobody.
    """
    if not any(device["pid"] == pids.get(device["id"]) for device in devices):
        raise ChaosError(f"the fog at {url} is not that of {state}; name its address with --url")
    if WIRES not in pids and (kinds := {f.kind for f in scenario.faults} & set(DEVICES_ONLY)):
        raise ChaosError(
            f"the fog of {state} runs without --chaos, so its devices cannot "
            f"suffer {' or '.join(sorted(kinds))}; start it with: e2llm up --chaos"
        )


def _run(
    scenario: Scenario, client: FogClient, testbed: FaultyFog, model: str, console: Console
) -> Report:
    plan = client.plan()
    bodies = make_bodies(
        client.model(),
        scenario.seed,
        scenario.max_tokens,
        scenario.sampled,
        scenario.num_answers,
    )
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    with progress:
        task = progress.add_task("undisturbed answers", total=len(bodies))
        jobs = answer_undisturbed(
            client, bodies, lambda number: progress.update(task, completed=number)
        )
        began = time.monotonic()

        def clock() -> float:
            return time.monotonic() - began

        load = Load(client.url, jobs, scenario.streams, clock, key=client.key)
        watch = Watch(FogClient(client.url, key=client.key, timeout_seconds=5.0), clock)
        faults = progress.add_task("faults", total=len(scenario.faults))
        answers = progress.add_task("answers", total=None)

        def tell(incident: Incident) -> None:
            what = incident.skipped or f"{incident.fault.kind.value} {incident.name}"
            progress.console.print(f"{incident.at:7.1f} s  {what}", markup=False, highlight=False)
            progress.advance(faults)

        director = Director(
            testbed,
            scenario.faults,
            lambda: watch.plan,
            random.Random(scenario.seed),
            tell,
            clock,
        )
        watch.start()
        load.start()
        director.start()
        is_interrupted = False
        try:
            while not director.is_done:
                time.sleep(_START_NOTICE_SECONDS)
                progress.update(answers, completed=len(load.outcomes))
            if director.error is None:
                time.sleep(scenario.settle_seconds)
        except KeyboardInterrupt:
            # What there is after half of a long run is worth its report.
            is_interrupted = True
        finally:
            director.stop()
            progress.update(answers, description="answers still to come")
            num_hanging = load.stop()
            watch.stop()
    if director.error is not None:
        raise ChaosError(str(director.error))
    weights = str(plan.get("weights", "float32"))
    judged = judge_all(load.outcomes, ties(model, weights))
    incidents = _explained(director.incidents, load.outcomes, watch)
    return Report(
        seed=scenario.seed,
        seconds=clock(),
        streams=scenario.streams,
        weights=weights,
        incidents=incidents,
        judged=judged,
        num_hanging=num_hanging,
        num_plans=watch.num_versions,
        is_interrupted=is_interrupted,
    )


def judge_all(outcomes: Sequence[Outcome], gap_of: Callable[[Job], Gap] | None) -> list[Judged]:
    """Compare each answer with the undisturbed one; see `fog.chaos.replay.ties` for ``gap_of``."""
    judged = []
    for outcome in outcomes:
        if outcome.answer is None:
            judged.append(Judged(outcome=outcome, verdict=None))
        else:
            gap = gap_of(outcome.job) if gap_of is not None else None
            verdict, what = judge(outcome.answer, outcome.job.undisturbed, gap)
            judged.append(Judged(outcome=outcome, verdict=verdict, what=what))
    return judged


def _explained(
    incidents: Sequence[Incident], outcomes: Sequence[Outcome], watch: Watch
) -> list[Incident]:
    """Return the incidents with the pauses that they made and the plans that followed."""
    happened = [incident for incident in incidents if not incident.skipped]
    pauses = {id(incident): 0.0 for incident in happened}
    for outcome in outcomes:
        if outcome.answer is not None and happened:
            cause = _cause(outcome, happened)
            longest = max(pauses[id(cause)], outcome.answer.longest_pause_seconds)
            pauses[id(cause)] = longest
    return [
        incident
        if incident.skipped
        else replace(
            incident,
            longest_pause_seconds=pauses[id(incident)],
            seconds_to_new_plan=watch.seconds_to_plan_without(
                incident.name,
                incident.at,
                incident.at + incident.fault.lasts_seconds + RECOVERY_SECONDS,
            ),
        )
        for incident in incidents
    ]


def _cause(outcome: Outcome, incidents: Sequence[Incident]) -> Incident:
    """Return what made an answer pause: the first fault within the pause, or the last before."""
    assert outcome.answer is not None
    start = outcome.answer.paused_at
    end = start + outcome.answer.longest_pause_seconds
    within = [incident for incident in incidents if start <= incident.at <= end]
    before = [incident for incident in incidents if incident.at < start]
    return within[0] if within else before[-1] if before else incidents[0]


@contextmanager
def _own_fog(options: ChaosOptions, console: Console) -> Iterator[tuple[str, StateFolder]]:
    """Run a fog for the run alone; give its address and its state."""
    port = free_port(random.SystemRandom())
    with tempfile.TemporaryDirectory(prefix="e2llm-chaos-") as folder:
        state = StateFolder(Path(folder) / "state")
        command = [*python_command("fog", "up", "--chaos"), "--port", str(port)]
        command += ["--state", str(state.path), "--fog", str(options.fog)]
        for name, value in (("--model", options.model), ("--weights", options.weights)):
            command += [name, value] if value is not None else []
        output = Path(folder) / "up.log"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=child_environ(os.environ),
            )
        try:
            url = f"http://{LOOPBACK}:{port}"
            console.print(f"Starting a fog from {options.fog.name} at {url}", highlight=False)
            _wait_until_ready(url, process, output)
            yield url, state
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    client = FogClient(url)
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if client.readiness().ready:
                return
        except FogUnreachableError:
            pass
        time.sleep(_START_NOTICE_SECONDS)
    text = output.read_text("utf-8", errors="replace")
    raise ChaosError(f"the fog did not come up:\n{text[-2000:]}")
