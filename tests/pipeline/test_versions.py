"""Neighbouring minor versions of the protocol work together: a recording of the last, upgrades."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec.structs
import pytest
from msgspec import Struct, msgpack

from broker.codec import decode_control, decode_frame, encode_control
from broker.control import (
    GRAMMAR_VERSION,
    PROTOCOL_VERSION,
    DeviceState,
    DeviceStatus,
    ModelManifest,
)
from broker.events import Tokens
from broker.plan import Loaded, PlanState
from broker.telemetry import parse_telemetry
from broker.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    DEVICE_TENSORS,
    GATEWAY_EVENTS,
    MODEL,
    PLAN,
    PLAN_HISTORY,
    PLANNER_STATUS,
    STAGE_WORK,
    Topic,
)
from broker.transport import Publication
from broker.work import Sampling, StepResult
from gateway.requests import NotReadyError
from nodes.connections import Connections
from planner.live.inputs import model_spec
from tests.support.checkpoints import BYTE_OFFSET, EOS_ID
from tests.support.recording import (
    DEVICES,
    NUM_TOKENS,
    REQUESTS,
    RecordingBroker,
    Turn,
    checkpoint,
    prompt,
    recorded,
    small_fog,
)
from tests.support.stepped_fog import GATEWAY, SteppedFog

PREVIOUS = Path(__file__).parent / "recordings" / "protocol-1.2.jsonl"
FRAMES = (STAGE_WORK, GATEWAY_EVENTS)
CONTROLS: tuple[Topic[Any], ...] = (
    MODEL, DEVICE_STATUS, DEVICE_PROFILE, DEVICE_LOADED, DEVICE_ASSIGNMENT, PLAN, PLAN_HISTORY,
    PLANNER_STATUS, DEVICE_TENSORS,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> ModelManifest:
    return checkpoint(folder)


@pytest.fixture
def turns(folder: Path) -> Sequence[Turn]:
    return recorded(PREVIOUS, folder)[1]


@pytest.fixture
def answers(folder: Path) -> dict[str, list[int]]:
    return recorded(PREVIOUS, folder)[0]


def frames(messages: Sequence[Publication]) -> Iterator[tuple[str, Any]]:
    """Return topic and header of every data message."""
    for message in messages:
        for topic in FRAMES:
            if topic.match(message.topic):
                yield message.topic, decode_frame(bytes(message.payload), topic.message)[0]


def tokens(messages: Sequence[Publication]) -> dict[str, list[int]]:
    found: dict[str, dict[int, int]] = {name: {} for name in REQUESTS}
    for _, header in frames(messages):
        for row in header.rows if isinstance(header, Tokens) else ():
            found[row.request_id][row.index] = row.token_id
    return {name: [row[index] for index in sorted(row)] for name, row in found.items()}


class Replay:
    """One process of today among recorded ones."""

    def __init__(self, manifest: ModelManifest, actor: str) -> None:
        self.actor = actor
        self.bus = RecordingBroker()
        self.fog = small_fog(manifest, SteppedFog, self.bus)
        self.said: list[Publication] = []

    def run(self, turns: Sequence[Turn]) -> Replay:
        for turn in turns:
            self.fog.now = turn.now
            if turn.actor != self.actor:
                for message in turn.messages:
                    self.bus.deliver(message)
                continue
            self.bus.turns.append(Turn(self.actor, turn.now))
            self.fog.move(self.actor)
            asks = any(STAGE_WORK.match(message.topic) for message in turn.messages)
            if self.actor == GATEWAY and asks and not self.fog.tokens:
                for name in REQUESTS:
                    self.fog.ask(name, prompt(name), NUM_TOKENS)
            self.said += self.bus.turns[-1].messages
        return self


def of(turns: Sequence[Turn], actor: str) -> list[Publication]:
    return [message for turn in turns if turn.actor == actor for message in turn.messages]


def version_before(version: str) -> str:
    major, minor = version.split(".")
    return f"{major}.{int(minor) - 1}"


def test_the_recording_is_of_the_minor_version_before_this_one(turns: Sequence[Turn]) -> None:
    (said,) = {
        decode_control(bytes(message.payload), DeviceStatus).protocol
        for turn in turns
        for message in turn.messages
        if DEVICE_STATUS.match(message.topic)
    }
    assert said == version_before(PROTOCOL_VERSION)


def test_every_recorded_message_can_be_read(turns: Sequence[Turn]) -> None:
    unread = []
    for message in (message for turn in turns for message in turn.messages):
        payload = bytes(message.payload)
        if not payload:  # cleared
            continue
        if DEVICE_TELEMETRY.match(message.topic):
            assert parse_telemetry(payload).refused == ()
            continue
        control = next((topic for topic in CONTROLS if topic.match(message.topic)), None)
        frame = next((topic for topic in FRAMES if topic.match(message.topic)), None)
        if control is not None:
            decode_control(payload, control.message)
        elif frame is not None:
            decode_frame(payload, frame.message)
        else:
            unread.append(message.topic)
    assert unread == []


class EarlierResult(Struct, frozen=True, array_like=True):
    """A `StepResult` of 1.0."""

    request_id: str
    attempt: int
    position: int
    token_id: int
    finish_reason: str | None = None


def test_results_with_and_without_proposed_ids_are_read_by_both_versions() -> None:
    earlier = EarlierResult("q", 1, 7, 9, "stop")
    now = StepResult("q", 1, 7, 9, "stop", (4, 5))
    assert msgpack.decode(msgpack.encode(earlier), type=StepResult).proposed_ids == ()
    assert msgpack.decode(msgpack.encode(now), type=EarlierResult) == earlier


@pytest.mark.parametrize("device", DEVICES)
def test_a_node_of_today_does_what_one_of_the_last_version_did(
    manifest: ModelManifest,
    turns: Sequence[Turn],
    answers: dict[str, list[int]],
    device: str,
) -> None:
    then = of(turns, device)
    none: dict[str, list[int]] = {name: [] for name in answers}

    now = Replay(manifest, device).run(turns).said

    assert tokens(now) == tokens(then) == (answers if device == DEVICES[-1] else none)
    kinds = [(topic, type(header)) for topic, header in frames(now)]
    assert kinds == [(topic, type(header)) for topic, header in frames(then)]
    assert loaded(now).stages == loaded(then).stages != []


def loaded(messages: Sequence[Publication]) -> Loaded:
    *_, last = (message for message in messages if DEVICE_LOADED.match(message.topic))
    return decode_control(bytes(last.payload), Loaded)


def test_a_gateway_of_today_gets_its_answers_from_nodes_of_the_last_version(
    manifest: ModelManifest, turns: Sequence[Turn], answers: dict[str, list[int]]
) -> None:
    fog = Replay(manifest, GATEWAY).run(turns).fog

    assert fog.failed == {}
    assert {name: [t for t, _ in answer] for name, answer in fog.tokens.items()} == answers
    assert fog.done == set(REQUESTS)


def test_a_planner_of_today_plans_with_nodes_of_the_last_version(
    manifest: ModelManifest, turns: Sequence[Turn]
) -> None:
    planner = Replay(manifest, "planner").run(turns).fog.planner

    active = planner.control.rollout.active
    assert active is not None
    assert active.state is PlanState.ACTIVE
    assert {stage.device for replica in active.replicas for stage in replica.stages} == set(DEVICES)
    assert planner.num_refused_messages == 0


def test_a_planner_of_today_takes_over_the_plan_of_the_last_version(
    manifest: ModelManifest, turns: Sequence[Turn]
) -> None:
    replay = Replay(manifest, "planner")
    for message in (message for turn in turns for message in turn.messages):
        if message.retained:
            replay.bus.deliver(message)
    before = decode_control(replay.bus.retained[PLAN.path("stepped")], PLAN.message)
    replay.bus.turns.append(Turn("planner", 0.0))
    for _ in range(100):
        replay.fog.now += 0.1
        replay.fog.move("planner")

    assert replay.fog.planner.control.rollout.active == before
    said = [m for m in replay.bus.turns[-1].messages if PLAN.match(m.topic)]
    assert all(decode_control(bytes(m.payload), PLAN.message) == before for m in said)


# --- upgrades -----------------------------------------------------------------------------


GRAMMAR = Sampling(grammar='start: "ab"', eos_token_ids=(EOS_ID,))


class EarlierNode(Connections):
    """A node that speaks the last version."""

    protocol = version_before(PROTOCOL_VERSION)

    def status(self, state: DeviceState) -> Publication:
        """Say an earlier version of the protocol."""
        said = super().status(state)
        message = decode_control(bytes(said.payload), DeviceStatus)
        earlier = msgspec.structs.replace(message, protocol=self.protocol)
        return replace(said, payload=encode_control(earlier))


class NodeWithoutGrammars(EarlierNode):
    """A node of the time before them."""

    protocol = version_before(GRAMMAR_VERSION)


def upgraded(manifest: ModelManifest, *, upgrades: bool) -> SteppedFog:
    """Return a fog of the last version that answered requests, perhaps while it was upgraded."""
    devices = "abcd"
    room = model_spec(manifest).stage_bytes(0, 3, 256)
    fog = SteppedFog(manifest, dict.fromkeys(devices, room), load_seconds=0.5)
    for device in devices:
        fog.stop_node(device)
        fog.start_node(device, 2_000, EarlierNode)
    for _ in fog.run(15):
        pass
    todo = [*devices, "planner"] if upgrades else []
    asked, down = 0, ""
    rest = fog.now
    for _ in fog.run(300):
        ended = len(fog.done) + len(fog.failed)
        if asked - ended < 4 and (asked < 12 or todo or down):
            fog.ask(f"q{asked}", prompt("greedy")[: 3 + asked % 30], 24)
            asked += 1
        if fog.now < rest:
            continue
        if down:
            fog.start_node(down, 3_000)
            down, rest = "", fog.now + 5
        elif todo and len(fog.view.complete_replicas) == 2:
            name = todo.pop(0)
            if name == "planner":
                fog.restart_planner(2)
            else:
                fog.stop_node(name)
                down = name
            rest = fog.now + 1
        elif not todo and asked >= 12 and ended == asked:
            break
    return fog


def test_an_upgrade_of_one_process_after_the_other_loses_nothing(manifest: ModelManifest) -> None:
    still, fog = upgraded(manifest, upgrades=False), upgraded(manifest, upgrades=True)

    said = {view.status.protocol for view in fog.view.devices.values() if view.status is not None}
    assert said == {PROTOCOL_VERSION}
    assert fog.planner.control.session == 2
    assert fog.failed == {}
    assert fog.done == set(fog.tokens)
    assert len(fog.done) > len(still.done)
    for name, answer in still.tokens.items():
        assert [t for t, _ in fog.tokens[name]] == [t for t, _ in answer]


def test_in_the_middle_of_an_upgrade_both_versions_serve_in_one_replica(
    manifest: ModelManifest,
) -> None:
    room = model_spec(manifest).stage_bytes(0, 3, 256)
    fog = SteppedFog(manifest, dict.fromkeys("ab", room), load_seconds=0.5)
    fog.stop_node("b")
    fog.start_node("b", 2_000, EarlierNode)
    for _ in fog.run(6):
        pass
    fog.ask("q", prompt("greedy"), 8)
    for _ in fog.run(10):
        pass
    (replica,) = fog.view.complete_replicas
    assert [stage.device for stage in sorted(replica.stages, key=lambda s: s.device)] == ["a", "b"]
    statuses = [fog.view.devices[device].status for device in "ab"]
    assert len({status.protocol for status in statuses if status is not None}) == 2
    assert fog.done == {"q"}


def test_a_grammar_goes_to_devices_that_follow_it_and_to_no_others(
    manifest: ModelManifest,
) -> None:
    room = model_spec(manifest).stage_bytes(0, 3, 256)
    fog = SteppedFog(manifest, dict.fromkeys("abcd", room), load_seconds=0.5)
    fog.stop_node("d")
    fog.start_node("d", 2_000, NodeWithoutGrammars)
    for _ in fog.run(15):
        pass
    chosen_by = {replica.stages[-1].device for replica in fog.view.complete_replicas}
    assert len(chosen_by) == 2
    assert "d" in chosen_by

    for number in range(8):
        fog.ask(f"q{number}", prompt("greedy"), 8, GRAMMAR)
    for _ in fog.run(20):
        pass
    assert fog.failed == {}
    answers = {tuple(token for token, _ in answer) for answer in fog.tokens.values()}
    assert answers == {(*(BYTE_OFFSET + byte for byte in b"ab"), EOS_ID)}

    for device in chosen_by - {"d"}:
        fog.stop_node(device)
    for _ in fog.run(2):
        pass
    assert fog.view.complete_replicas
    with pytest.raises(NotReadyError, match="cannot hold an answer to a grammar"):
        fog.ask("late", prompt("greedy"), 8, GRAMMAR)
