"""The running fog changes its model under load, and serves two at once; nobody gets an error."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fog.chaos.load import Job, Load, make_bodies
from fog.client import FogRequestError
from fog.config import DEFAULT_FOG
from fog.model_choice import DEMO_MODEL, DEMO_NAME
from tests.support.running_fog import ROOT, RunningFog, environment, running_fog

# A fog of its own, with memory for two models on each device.
pytestmark = [pytest.mark.xdist_group("chaos"), pytest.mark.slow, pytest.mark.timeout(300)]

SECOND = "second"


@pytest.fixture(scope="module")
def fog(mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFog]:
    folder = tmp_path_factory.mktemp("models")
    text = re.sub(r'model_memory = ".*"', 'model_memory = "150 %"', DEFAULT_FOG.read_text("utf-8"))
    (folder / "fog.toml").write_text(text, "utf-8")
    with running_fog(folder, "--fog", str(folder / "fog.toml")) as started:
        yield started


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with one bit turned: to the fog it is another model."""
    folder = tmp_path_factory.mktemp("second") / SECOND
    shutil.copytree(DEMO_MODEL, folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-4] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    return folder


def e2llm(fog: RunningFog, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "fog", "model", *arguments, "--url", fog.url, "--json", "-"],
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def states(fog: RunningFog) -> dict[str, str]:
    return {each["name"]: each["state"] for each in fog.client.models()}


def models_of(fog: RunningFog) -> dict[str, set[str]]:
    """Return the devices of each model."""
    plan = fog.plan()
    return {
        part["model"]: {s["device"] for r in part["replicas"] for s in r["stages"]}
        for part in (plan, *plan["others"])
    }


def test_a_model_is_changed_under_load_without_a_failed_or_refused_request(
    fog: RunningFog, second: Path
) -> None:
    assert e2llm(fog, "add", str(second))["state"] == "added"
    bodies = make_bodies("default", seed=3, max_tokens=24, sampled=0.0, count=6)
    load = Load(fog.url, [Job(body=body, undisturbed=fog.client.chat(body)) for body in bodies], 2)
    load.start()

    e2llm(fog, "use", SECOND)
    hung = load.stop()

    assert hung == 0
    assert [each.error for each in load.outcomes if each.answer is None] == []
    assert sum(each.num_refused for each in load.outcomes) == 0
    # One bit of a weight decides no token of these answers.
    assert all(
        each.answer is not None and each.answer.token_ids == each.job.undisturbed.token_ids
        for each in load.outcomes
    )
    assert states(fog) == {DEMO_NAME: "added", SECOND: "serving"}
    assert fog.model == SECOND
    with pytest.raises(FogRequestError, match="is not served here"):
        fog.client.chat({**bodies[0], "model": DEMO_NAME})


def test_two_models_serve_at_once_on_devices_of_their_own(fog: RunningFog, second: Path) -> None:
    if SECOND not in states(fog):
        e2llm(fog, "add", str(second))

    e2llm(fog, "use", DEMO_NAME, SECOND)

    assert states(fog) == {DEMO_NAME: "serving", SECOND: "serving"}
    found = models_of(fog)
    assert found.keys() == {DEMO_NAME, SECOND}
    assert not found[DEMO_NAME] & found[SECOND]
    body = make_bodies("default", seed=3, max_tokens=24, sampled=0.0, count=1)[0]
    for name in (DEMO_NAME, SECOND):
        assert fog.client.chat({**body, "model": name}).token_ids
    e2llm(fog, "use", DEMO_NAME)
    assert states(fog) == {DEMO_NAME: "serving", SECOND: "added"}
    e2llm(fog, "remove", SECOND)
    assert states(fog) == {DEMO_NAME: "serving"}
