"""`e2llm up --once`: one object on stdout, from a wheel, a hub or a damaged folder."""

import json
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import venv
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from fog.model_choice import DEMO_MODEL
from tests.support.hub_server import Hub, hub_server
from tests.support.running_fog import ROOT, Outcome, environment, up_once

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.slow,
    pytest.mark.usefixtures("mosquitto_path"),
    pytest.mark.timeout(180),
]

QUESTION = "What is 7 plus 5?"
# Two devices start sooner than six.
SMALL_FOG = """
[[device]]
id = "left"
slowdown = 3
model_memory = "{memory}"

[[device]]
id = "right"
slowdown = 4
model_memory = "{memory}"
"""


def fog_file(folder: Path, memory: str = "80 %") -> Path:
    path = folder / "fog.toml"
    path.write_text(SMALL_FOG.format(memory=memory))
    return path


def copy_of_the_model(folder: Path) -> Path:
    return Path(shutil.copytree(DEMO_MODEL, folder / "model"))


def test_a_wheel_answers_in_a_folder_of_its_own_without_our_checkout(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "dist")
    python = install(wheel, tmp_path / "venv")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    for package in ("broker", "planner", "nodes", "gateway", "fog"):
        found = run(python, "-P", "-c", f"import {package}; print({package}.__file__)")
        assert Path(found.strip()).is_relative_to(tmp_path / "venv")
    outcome = up_once(tmp_path, QUESTION, command=[str(python.with_name("e2llm"))], cwd=elsewhere)

    answer = outcome.answer
    assert set(answer) == {"text", "token_ids", "ttft_seconds", "tpot_seconds", "plan"}
    assert "12" in answer["text"]
    assert len(answer["token_ids"]) >= 2
    assert all(isinstance(token_id, int) for token_id in answer["token_ids"])
    assert 0 < answer["ttft_seconds"] < 60
    assert 0 < answer["tpot_seconds"] < 60
    assert answer["plan"]["state"] == "active"
    assert answer["plan"]["measured"]["ttft_seconds"] > 0
    assert {"prefill", "decode"} <= {r["role"] for r in answer["plan"]["replicas"]}
    assert list(elsewhere.iterdir()) == []


def build_wheel(folder: Path) -> Path:
    """Build the wheel as `pip install` would, from what git does not ignore."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", folder, ROOT)  # fmt: skip
    [wheel] = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install into a new environment that sees our dependencies but not our checkout."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for key in ("purelib", "platlib"):
        # A plain path: the .pth file of our editable installation in it is not read again.
        (site / f"dependencies-{key}.pth").write_text(sysconfig.get_path(key) + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
        "--no-index", "--disable-pip-version-check", "--force-reinstall", wheel)  # fmt: skip
    return python


def run(*command: object) -> str:
    finished = subprocess.run(
        [str(part) for part in command],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_model_comes_from_the_hub_also_when_the_line_drops(tmp_path: Path) -> None:
    hub = Hub(models={"owner/demo": DEMO_MODEL}, drops=1)

    with hub_server(hub) as url:
        options = ("--fog", str(fog_file(tmp_path)), "--model", "owner/demo")
        home = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hub-cache")}
        outcome = up_once(tmp_path, QUESTION, *options, environ=home)

    assert "12" in outcome.answer["text"]
    assert outcome.answer["plan"]["model"] == "owner/demo"
    # The hub sent large files on to its storage, which broke one off and was asked once more.
    stored = Counter(
        path for method, path, _ in hub.served if method == "GET" and path.startswith("/cdn/")
    )
    assert "model.safetensors" in {Path(path).name for path in stored}
    assert stored.total() == len(stored) + 1


@dataclass(frozen=True)
class Refusals:
    """How four starts ended that could not go well.

    Attributes:
        damaged: The checkpoint lacked `missing`, and its last tensor, `cut_off`, was cut off.
        small: Two devices offered 2 MB each.
        private: The hub wanted a token.
        unknown: The hub does not have the model.
        hub_url: Where that hub was.
    """

    damaged: Outcome
    missing: str
    cut_off: str
    small: Outcome
    private: Outcome
    unknown: Outcome
    hub_url: str


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Refusals:
    """All at once, since most of their time is patience."""
    # Long enough for devices to start on a busy machine, and for them to have a say.
    patience = ("--timeout", "12")
    model = copy_of_the_model(tmp_path_factory.mktemp("damaged"))
    missing, cut_off = damage(model / "model.safetensors")
    hub = Hub(models={"owner/private": DEMO_MODEL}, private={"owner/private"})

    def start(
        memory: str, *options: str, environ: Mapping[str, str] | None = None
    ) -> Future[Outcome]:
        folder = tmp_path_factory.mktemp("refused")
        fog = ("--fog", str(fog_file(folder, memory)))
        arguments = (*fog, *patience, *options)
        return pool.submit(lambda: up_once(folder, QUESTION, *arguments, environ=environ))

    with hub_server(hub) as url, ThreadPoolExecutor() as pool:
        home = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
        damaged = start("80 %", "--model", str(model))
        small = start("2 MB")
        private = start("80 %", "--model", "owner/private", environ=home)
        unknown = start("80 %", "--model", "owner/nothing", environ=home)
        return Refusals(
            damaged=damaged.result(),
            missing=missing,
            cut_off=cut_off,
            small=small.result(),
            private=private.result(),
            unknown=unknown.result(),
            hub_url=url,
        )


def test_a_damaged_checkpoint_is_refused_with_the_names_of_the_damaged_tensors(
    refusals: Refusals,
) -> None:
    error = last_words(refusals.damaged)

    assert f"missing: {refusals.missing}" in error
    assert f"cut off: {refusals.cut_off}" in error
    either = f"({refusals.missing}|{refusals.cut_off})"
    assert re.search(f"device (left|right) cannot load .*{either}", error)


def test_a_fog_with_too_little_memory_is_told_how_much_is_missing(refusals: Refusals) -> None:
    error = last_words(refusals.small)

    sizes = {
        word: float(number)
        for word, number in re.findall(r"(needs|offers|devices:) ([0-9.]+) MB", error)
    }
    assert sizes["offers"] == 4.0
    # Shown with one decimal each.
    assert sizes["devices:"] == pytest.approx(sizes["needs"] - sizes["offers"], abs=0.11)
    assert "MB are missing" in error


def test_a_model_that_the_hub_does_not_give_ends_the_start_with_one_clear_sentence(
    refusals: Refusals,
) -> None:
    for name in ("private", "unknown"):
        outcome: Outcome = getattr(refusals, name)
        model = {"private": "owner/private", "unknown": "owner/nothing"}[name]
        error = last_words(outcome)
        assert (
            f"{refusals.hub_url} has no model {model}, or it is private: "
            "check the id, or set HF_TOKEN"
        ) in error
        assert "Traceback" not in error


def damage(file: Path) -> tuple[str, str]:
    """Leave one tensor of a safetensors file out and cut off another; return their names."""
    missing = "model.layers.5.mlp.down_proj.weight"
    tensors = load_file(file)
    del tensors[missing]
    save_file(tensors, file)
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    (length,) = struct.unpack("<Q", content[:8])
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return missing, max(header, key=lambda name: int(header[name]["data_offsets"][1]))


def last_words(outcome: Outcome) -> str:
    """Return what a failed `up` said at last, without its progress; nothing is on stdout."""
    assert outcome.exit_code == 1, outcome.stderr
    assert outcome.stdout == ""
    return outcome.stderr[outcome.stderr.index("e2llm: ") :]
