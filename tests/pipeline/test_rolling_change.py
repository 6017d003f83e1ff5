"""A change of plan in a fog whose devices cannot hold both, under load, without a gap."""

from __future__ import annotations

import random

import pytest

from broker.control import DeviceControl, ModelManifest, OwnerRules
from broker.plan import Plan
from broker.topics import DEVICE_CONTROL
from planner.live.inputs import model_spec
from tests.support.checkpoints import manifest_of, write_checkpoint
from tests.support.stepped_fog import SteppedFog

DEVICES = "abcd"
NUM_REQUESTS = 24
NUM_TOKENS = 24
STREAMS = 4


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ModelManifest:
    folder = tmp_path_factory.mktemp("rolling")
    write_checkpoint(folder, "llama")
    return manifest_of(folder, "tiny")


def started(manifest: ModelManifest) -> SteppedFog:
    """A fog of two replicas, each on two devices that hold three layers and no more."""
    room = model_spec(manifest).stage_bytes(0, 3, 256)
    fog = SteppedFog(manifest, dict.fromkeys(DEVICES, room))
    for _ in fog.run(15):
        pass
    assert fog.view.active is not None
    assert [len(replica.stages) for replica in fog.view.active.replicas] == [2, 2]
    return fog


def prompt(index: int) -> list[int]:
    rng = random.Random(index)
    return [rng.randrange(3, 259) for _ in range(rng.randint(3, 60))]


def serve(fog: SteppedFog, seconds: float = 300.0) -> list[Plan]:
    """Keep some requests running until all have ended; return the plans that were active."""
    plans: list[Plan] = []
    for _ in fog.run(seconds):
        plan = fog.view.active
        if plan is not None and plan not in plans:
            plans.append(plan)
        ended = len(fog.done) + len(fog.failed)
        if len(fog.tokens) < NUM_REQUESTS and len(fog.tokens) - ended < STREAMS:
            fog.ask(f"q{len(fog.tokens)}", prompt(len(fog.tokens)), NUM_TOKENS)
        if ended == NUM_REQUESTS and not fog.planner.control.rollout.is_changing:
            break
    return plans


def swap(fog: SteppedFog) -> None:
    """Let the owner of a first stage allow the other layers only."""
    assert fog.view.active is not None
    first = fog.view.active.replicas[0].stages[0]
    rules = OwnerRules(layers=(first.layers.end, 5))
    fog.say(DEVICE_CONTROL, DeviceControl(rules=rules, at=1.0), device=first.device)


def test_a_rolling_change_under_load_fails_nothing_and_some_replica_always_serves(
    manifest: ModelManifest,
) -> None:
    undisturbed = started(manifest)
    serve(undisturbed)
    fog = started(manifest)
    before = fog.view.active
    fog.num_complete.clear()
    swap(fog)

    plans = serve(fog)

    assert before is not None
    old, new = ({r.id for r in p.replicas} for p in (before, plans[-1]))
    assert old != new
    assert [len(plan.replicas) for plan in plans] == [1, 2]
    assert fog.num_complete[-1] == 2
    assert fog.failed == {}
    assert {name: [t for t, _ in answer] for name, answer in fog.tokens.items()} == {
        name: [t for t, _ in answer] for name, answer in undisturbed.tokens.items()
    }
    assert min(fog.num_complete) >= 1
    # Requests end where they are: nobody waits for devices that load for two seconds.
    assert fog.longest_gap_seconds < 1.0
