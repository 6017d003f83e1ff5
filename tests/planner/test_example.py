"""The README's planning example: it runs as it stands there and prints what stands below it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import planner
from planner import DecodeTime, DeviceSpec, LayerTimes, Link, ModelSpec, PrefillTime, Workload, plan

ROOT = Path(__file__).parents[2]


def example_of_the_readme() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    [block] = [block for block in blocks if "from planner import" in block]
    return str(block)


def test_the_example_in_the_readme_runs_and_prints_the_comment_at_its_end(tmp_path: Path) -> None:
    block = example_of_the_readme()

    finished = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr
    found = re.search(r"((?:^#.*\n)*)\Z", block, re.M)
    expected = found[1] if found is not None else ""
    assert finished.stdout == re.sub(r"^# ?", "", expected, flags=re.M)


def test_what_the_package_exports_is_enough_to_plan() -> None:
    times = LayerTimes(prefill=[PrefillTime(64, 0.01)], decode=[DecodeTime(1, 64, 0.001)])
    link = Link(latency_seconds=0.001, bytes_per_second=1e7)
    devices = [
        DeviceSpec(
            id=name,
            memory_bytes=700,
            blocks={"full": times},
            embedding=times,
            head=times,
            link=link,
        )
        for name in ("a", "b")
    ]
    model = ModelSpec(
        name="m",
        revision="r",
        weights="float32",
        kv_format="float32",
        block_kinds=("full",) * 4,
        block_bytes=(200,) * 4,
        kv_bytes=(1,) * 4,
        embedding_bytes=10,
        head_bytes=10,
        activation_bytes=8,
        context_limit=16,
    )

    best = plan(devices, model, Workload(context_tokens=16))

    assert isinstance(best, planner.Plan)
    assert {stage.device for replica in best.replicas for stage in replica.stages} == {"a", "b"}
