"""From one model to another while requests run: beside each other, rolling, one after the other."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import msgspec.structs
import pytest

from broker.control import ModelManifest
from broker.identity import identity
from broker.plan import Plan, PlanState
from planner.live.inputs import model_spec
from tests.support.checkpoints import manifest_of, write_checkpoint
from tests.support.stepped_fog import SteppedFog

DEVICES = "abc"
NUM_TOKENS = 12
STREAMS = 3
OLD, NEW = "tiny", "other"


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[ModelManifest]:
    return [
        manifest_of(
            write_checkpoint(tmp_path_factory.mktemp(name), "llama", seed=seed), name, in_use=used
        )
        for seed, (name, used) in enumerate(((OLD, True), (NEW, False)))
    ]


def room(manifests: Sequence[ModelManifest], share: float) -> int:
    """Return a share of what one model takes, with KV of one request."""
    return int(share * model_spec(manifests[0]).stage_bytes(0, 5, 256))


def started(
    manifests: Sequence[ModelManifest], memory_bytes: int, devices: str = DEVICES
) -> SteppedFog:
    fog = SteppedFog(
        manifests[0], dict.fromkeys(devices, memory_bytes), others=manifests[1:], load_seconds=2.0
    )
    for _ in fog.run(15):
        pass
    assert fog.view.active is not None
    assert fog.view.active.model == OLD
    fog.num_complete.clear()
    return fog


def prompt(index: int) -> list[int]:
    rng = random.Random(index)
    return [rng.randrange(3, 259) for _ in range(rng.randint(3, 60))]


class Load:
    """Requests that follow each other, some at a time, and which model each of them got."""

    def __init__(self, fog: SteppedFog) -> None:
        self.fog = fog
        self.models: dict[str, str] = {}
        self.asked: dict[str, float] = {}
        self.plans: list[Plan] = []

    def run(self, *, asks: bool = True) -> Iterator[None]:
        """Let time pass, with a new request for each that has ended."""
        fog = self.fog
        for _ in fog.run(300):
            plan = fog.view.active
            if plan is not None and plan not in self.plans:
                self.plans.append(plan)
            if asks and len(fog.tokens) - len(fog.done) - len(fog.failed) < STREAMS:
                name = f"q{len(fog.tokens)}"
                self.models[name], self.asked[name] = fog.model.name, fog.now
                fog.ask(name, prompt(len(fog.tokens)), NUM_TOKENS)
            yield

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self.fog.tokens) - len(self.fog.done) - len(self.fog.failed)

    @property
    def longest_wait_seconds(self) -> float:
        """The longest time to a first token."""
        answers = self.fog.tokens.items()
        return max(answer[0][1] - self.asked[name] for name, answer in answers)


def change(load: Load, name: str) -> None:
    """Change to another model when a few requests have ended, and serve on for a while."""
    for _ in load.run():
        if len(load.fog.done) >= 4:
            break
    load.fog.use(name)
    for _ in load.run():
        num_new = sum(model == name for model in load.models.values())
        if num_new >= 6 and not load.fog.planner.control.rollout.is_changing:
            break
    for _ in load.run(asks=False):
        if not load.num_unfinished:
            break


def alone(manifest: ModelManifest, memory_bytes: int, names: Sequence[str]) -> dict[str, list[int]]:
    """Return what a fog that serves only this model answers."""
    fog = SteppedFog(manifest, {"a": memory_bytes})
    for _ in fog.run(8):
        pass
    # As they were asked before, half of them sampled with a seed of their number.
    for index in range(1 + max(int(name[1:]) for name in names)):
        fog.ask(f"q{index}", prompt(index), NUM_TOKENS)
    for _ in fog.run(300):
        if fog.done >= set(names):
            break
    return {name: [token for token, _ in fog.tokens[name]] for name in names}


@pytest.fixture(scope="module")
def beside(manifests: list[ModelManifest]) -> Load:
    """A change in a fog with memory for both models, done."""
    load = Load(started(manifests, room(manifests, 2.5)))
    change(load, NEW)
    return load


def test_with_memory_for_both_no_request_fails_and_nobody_waits_for_a_second(beside: Load) -> None:
    assert beside.fog.failed == {}
    assert beside.fog.longest_gap_seconds < 1.0
    assert beside.longest_wait_seconds < 1.0
    assert min(beside.fog.num_complete) >= 1
    assert set(beside.models.values()) == {OLD, NEW}


def test_the_old_model_leaves_when_the_new_one_serves(beside: Load) -> None:
    old, both, new = beside.plans
    assert [plan.model for plan in beside.plans] == [OLD, NEW, NEW]
    assert [(part.model, part.is_leaving) for part in both.others] == [(OLD, True)]
    assert old.others == new.others == []


def test_each_answer_is_that_of_the_model_that_it_was_asked_of(
    beside: Load, manifests: list[ModelManifest]
) -> None:
    for manifest in manifests:
        names = [name for name, model in beside.models.items() if model == manifest.name]
        found = {name: [token for token, _ in beside.fog.tokens[name]] for name in names}
        in_use = msgspec.structs.replace(manifest, in_use=True)
        assert found == alone(in_use, room(manifests, 2.5), names)


def test_devices_free_the_old_model_when_its_requests_have_ended(beside: Load) -> None:
    for _ in beside.fog.run(15):
        pass
    assert beside.fog.view.active is not None
    new = {replica.id for replica in beside.fog.view.active.replicas}
    held = {replica for service in beside.fog.services for replica, _ in service.core.stages}
    assert held == new


def test_without_memory_for_both_what_was_asked_ends_first_and_new_requests_wait(
    manifests: list[ModelManifest],
) -> None:
    fog = started(manifests, room(manifests, 1.2), "a")
    load = Load(fog)

    change(load, NEW)

    assert fog.failed == {}
    assert fog.longest_gap_seconds < 1.0
    assert set(load.models.values()) == {OLD, NEW}
    leaving = [plan for plan in load.plans if plan.model == OLD and plan.is_leaving]
    assert len(leaving) == 1
    assert load.plans[-1].model == NEW


def test_without_memory_for_both_on_any_device_replicas_change_one_after_the_other(
    manifests: list[ModelManifest],
) -> None:
    fog = started(manifests, room(manifests, 1.2))
    load = Load(fog)

    change(load, NEW)

    assert fog.failed == {}
    assert min(fog.num_complete) >= 1
    assert fog.longest_gap_seconds < 1.0
    assert set(load.models.values()) == {OLD, NEW}


def test_the_fog_may_go_back_before_the_new_model_serves(manifests: list[ModelManifest]) -> None:
    fog = started(manifests, room(manifests, 2.5))
    fog.use(NEW)
    for _ in fog.run(30):
        if fog.view.preparing is not None:
            break
    assert fog.view.preparing is not None

    fog.use(OLD)
    for _ in fog.run(30):
        pass

    assert fog.view.active is not None
    assert fog.view.active.model == OLD
    assert fog.view.active.state is PlanState.ACTIVE
    assert not fog.planner.control.rollout.is_changing
    assert min(fog.num_complete) >= 1


def test_a_request_that_names_a_model_which_leaves_is_answered_by_it(
    manifests: list[ModelManifest],
) -> None:
    fog = started(manifests, room(manifests, 2.5))
    for index in range(12):
        fog.ask(f"old{index}", prompt(index), NUM_TOKENS)
    fog.use(NEW)
    for _ in fog.run(120):
        if len(fog.done) == 12 and not fog.planner.control.rollout.is_changing:
            break
    assert fog.failed == {}
    assert len(fog.done) == 12
    assert fog.view.active is not None
    assert [identity(part) for part in fog.view.active.parts] == [identity(manifests[1])]
