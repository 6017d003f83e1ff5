"""A node on the bus: joins, measures, loads, serves, and survives what it is sent."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from broker import codec
from broker.control import DeviceState, DeviceStatus, GatewayStatus, ModelManifest, TensorOffer
from broker.events import Granted, GrantState, LossKind, Lost, Tokens
from broker.plan import LayerRange, LoadState, Replica
from broker.registry import parse_config
from broker.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    DEVICE_TENSORS,
    GATEWAY_STATUS,
    MODEL,
    PLAN,
    STAGE_CREDIT,
    STAGE_KV,
    STAGE_WORK,
)
from broker.work import Open, Release, Reserve, ReserveKind, Sampling
from nodes.checkpoint import TensorSource
from nodes.holdings import DRAIN_SECONDS, HANDOVER_SECONDS, RETRY_SECONDS
from nodes.shelf import Shelf
from nodes.weights import LayerWeights
from tests.support.checkpoints import manifest_of, write_checkpoint
from tests.support.node_rig import CHUNK_TOKENS, SESSION, InlineLoader, NodeRig, make_replica
from tests.support.stages import build_stages, fill_weights, generate

PROMPT = tuple(range(3, 43))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def manifest(model_folder: Path) -> ModelManifest:
    return manifest_of(model_folder)


@pytest.fixture
def rig() -> NodeRig:
    rig = NodeRig()
    rig.start()
    return rig


def ask(rig: NodeRig, replica: Replica, request_id: str, max_tokens: int) -> None:
    rig.send(
        replica.id,
        0,
        Reserve(
            request_id=request_id,
            attempt=0,
            gateway="gateway",
            kind=ReserveKind.BOTH,
            known_tokens=len(PROMPT),
            max_tokens=max_tokens,
        ),
    )


def open_request(rig: NodeRig, replica: Replica, request_id: str, max_tokens: int) -> None:
    rig.send(
        replica.id,
        0,
        Open(
            request_id=request_id,
            attempt=0,
            gateway="gateway",
            prefill_replica=replica.id,
            decode_replica=replica.id,
            num_prompt_tokens=len(PROMPT),
            num_generated_tokens=0,
            max_tokens=max_tokens,
            sampling=Sampling(),
            prompt_ids=PROMPT,
        ),
    )


def answer(rig: NodeRig, request_id: str) -> dict[int, int]:
    return {
        row.index: row.token_id
        for event in rig.events()
        if isinstance(event, Tokens)
        for row in event.rows
        if row.request_id == request_id
    }


def expected_tokens(manifest: ModelManifest, num_tokens: int) -> list[int]:
    config = parse_config(manifest.config)
    weights = fill_weights(LayerWeights(config, TensorSource(manifest)))
    return generate(build_stages(weights, chunk_tokens=CHUNK_TOKENS), PROMPT, num_tokens)


# --- joining --------------------------------------------------------------------------------


def test_a_node_says_ready_only_when_both_connections_stand() -> None:
    rig = NodeRig()
    rig.connections.open(SESSION)
    rig.transports[0].drop()  # KV
    rig.run(1.0)
    assert rig.retained(DEVICE_STATUS) is None
    rig.transports[0].connect()
    rig.run(0.1)
    assert rig.retained(DEVICE_STATUS).state is DeviceState.READY


def test_a_node_takes_a_later_session_than_the_one_it_finds() -> None:
    rig = NodeRig()
    earlier = DeviceStatus(state=DeviceState.READY, session=SESSION + 7)
    rig.publish(DEVICE_STATUS, earlier, device="pi")
    rig.start()
    assert rig.retained(DEVICE_STATUS).session == SESSION + 8
    rig.transports[-1].drop()
    assert rig.retained(DEVICE_STATUS) == DeviceStatus(
        state=DeviceState.LOST,
        session=SESSION + 8,
        software="0.0",
        pid=rig.retained(DEVICE_STATUS).pid,
    )


def test_a_late_will_of_an_earlier_session_is_contradicted(rig: NodeRig) -> None:
    late = DeviceStatus(state=DeviceState.LOST, session=SESSION - 1)
    rig.publish(DEVICE_STATUS, late, device="pi")
    rig.run(1.5)
    status = rig.retained(DEVICE_STATUS)
    assert (status.state, status.session) == (DeviceState.READY, SESSION)


def test_after_every_connect_all_retained_state_is_published_again(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    rig.serve(manifest)
    before = dict(rig.broker.retained)
    work = rig.transports[-1]
    work.drop()
    for topic in (DEVICE_STATUS, DEVICE_PROFILE, DEVICE_LOADED):
        path = topic.path("test", device="pi")
        rig.broker._retained.pop(path)
    work.connect()
    rig.run(0.1)
    assert rig.broker.retained == before


def test_a_node_whose_retained_state_was_cleared_says_it_again(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    rig.serve(manifest)
    before = dict(rig.broker.retained)
    for topic in (DEVICE_STATUS, DEVICE_PROFILE, DEVICE_LOADED):
        rig.publish(topic, b"", device="pi")
    assert rig.retained(DEVICE_STATUS) is None
    rig.run(1.5)
    assert rig.broker.retained == before


def test_a_clean_stop_says_lost_before_it_disconnects(rig: NodeRig) -> None:
    rig.connections.close()
    assert rig.retained(DEVICE_STATUS).state is DeviceState.LOST


# --- measuring ------------------------------------------------------------------------------


def test_a_node_measures_itself_for_the_model_and_reports_it(manifest: ModelManifest) -> None:
    rig = NodeRig(slowdown=4.0)
    rig.start()
    rig.publish(MODEL, manifest, model="tiny")
    rig.run(0.2)
    profile = rig.retained(DEVICE_PROFILE)
    assert profile.model_revision == manifest.revision
    assert profile.session == SESSION
    assert profile.slowdown == 4.0
    assert profile.blocks["full"].decode[0].seconds == pytest.approx(0.004)
    assert profile.memory_bytes > 0
    assert profile.link.bytes_per_second > 0
    assert profile.arithmetic == "test arithmetic"
    states = [loaded.state for loaded in rig.heard(DEVICE_LOADED)]
    assert states == [LoadState.MEASURING, LoadState.LOADED]


def test_fresh_urls_for_the_same_model_are_no_reason_to_measure_again(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    rig.publish(MODEL, manifest, model="tiny")
    rig.run(0.1)
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    renewed = ModelManifest(**{**fields, "expires_at": 5.0})
    rig.publish(MODEL, renewed, model="tiny")
    rig.run(0.1)
    assert rig.calibrator.started == [manifest.revision]


def test_a_model_that_cannot_be_served_is_reported_with_the_reason(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    rig.calibrator.error = "config key hidden_act='gelu' is not supported"
    rig.publish(MODEL, manifest, model="tiny")
    rig.run(0.1)
    assert rig.loaded.state is LoadState.FAILED
    assert rig.loaded.error == rig.calibrator.error
    assert rig.retained(DEVICE_PROFILE) is None


# --- loading --------------------------------------------------------------------------------


def test_an_assignment_is_loaded_and_reported(rig: NodeRig, manifest: ModelManifest) -> None:
    replica = rig.serve(manifest, LayerRange(0, 2), LayerRange(2, 5))
    loaded = rig.loaded
    assert (loaded.state, loaded.version, loaded.error) == (LoadState.LOADED, 1, None)
    assert loaded.stages == [f"{replica.id}/0"]
    assert "model.embed_tokens.weight" in loaded.tensors
    assert "model.layers.1.mlp.down_proj.weight" in loaded.tensors
    assert "model.layers.2.mlp.down_proj.weight" not in loaded.tensors
    assert loaded.loaded_bytes == loaded.total_bytes > 0


def test_a_node_that_hands_weights_on_announces_what_it_has_loaded(
    manifest: ModelManifest,
) -> None:
    rig = NodeRig(loader=InlineLoader(shelf=Shelf("http://pi:8090", None)))
    rig.start()
    assert rig.retained(DEVICE_TENSORS) == TensorOffer(session=SESSION, url="http://pi:8090")
    rig.serve(manifest)
    everything = [(0, len(manifest.tensors))]
    assert rig.retained(DEVICE_TENSORS).tensors == {manifest.revision: everything}


def test_a_node_that_hands_nothing_on_takes_back_what_an_earlier_run_announced() -> None:
    rig = NodeRig()
    stale = TensorOffer(session=1, url="http://pi:8090", tensors={"r": [(0, 5)]})
    rig.publish(DEVICE_TENSORS, stale, device="pi")
    rig.start()
    assert rig.retained(DEVICE_TENSORS) is None


def test_a_node_knows_what_others_hand_on_until_they_take_it_back() -> None:
    loader = InlineLoader()
    rig = NodeRig(loader=loader)
    rig.start()
    offer = TensorOffer(session=1, url="http://attic:8090", tensors={"r": [(0, 5)]})
    rig.publish(DEVICE_TENSORS, offer, device="attic")
    rig.run(0.1)
    (holder,) = loader.exchange.neighbours.holders("r", 4)
    assert (holder.device, holder.url) == ("attic", "http://attic:8090")
    rig.publish(DEVICE_TENSORS, b"", device="attic")
    rig.run(0.1)
    assert loader.exchange.neighbours.holders("r", 4) == []


@pytest.mark.parametrize("last", ["plan", "model"])
def test_an_assignment_waits_for_what_comes_after_it(
    rig: NodeRig, manifest: ModelManifest, last: str
) -> None:
    replica = make_replica(manifest, [("pi", LayerRange(0, 5))])
    rig.assign(manifest, [(replica, 0)])
    publish = {
        "plan": lambda: rig.publish(PLAN, rig.plan(manifest, replica)),
        "model": lambda: rig.publish(MODEL, manifest, model="tiny"),
    }
    for name in sorted(publish, key=lambda name: name == last):
        assert rig.service.core.stages == {}
        publish[name]()
        rig.run(0.1)
    assert list(rig.service.core.stages) == [(replica.id, 0)]


def test_an_older_assignment_or_plan_never_replaces_a_newer_one(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    whole = rig.serve(manifest)
    part = make_replica(manifest, [("pi", LayerRange(0, 2)), ("x", LayerRange(2, 5))])
    rig.assign(manifest, [(whole, 0)], version=9)
    rig.run(0.1)
    rig.publish(PLAN, rig.plan(manifest, part, version=0))
    rig.assign(manifest, [(part, 0)], version=8)
    rig.run(0.1)
    assert rig.loaded.version == 9
    assert rig.loaded.stages == [f"{whole.id}/0"]
    assert rig.service.core.replica(part.id) is None


def test_a_stage_that_is_not_assigned_any_more_goes_when_it_is_idle(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    whole = rig.serve(manifest)
    part = make_replica(manifest, [("pi", LayerRange(0, 2)), ("x", LayerRange(2, 5))])
    rig.publish(PLAN, rig.plan(manifest, part, version=2))
    rig.assign(manifest, [(part, 0)])
    rig.run(0.2)
    assert list(rig.service.core.stages) == [(part.id, 0)]
    assert not any(name.startswith("model.layers.4") for name in rig.loaded.tensors)
    assert rig.loaded.stages == [f"{part.id}/0"]
    assert whole.id != part.id


def busy_replica(rig: NodeRig, manifest: ModelManifest) -> Replica:
    """Let the node serve the first stage of a replica whose other device never answers."""
    replica = rig.serve(manifest, LayerRange(0, 2), LayerRange(2, 5))
    ask(rig, replica, "slow", 8)
    rig.run(0.1)
    open_request(rig, replica, "slow", 8)
    rig.run(0.1)
    return replica


def test_a_stage_that_still_serves_drains_before_it_goes(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    replica = busy_replica(rig, manifest)
    rig.assign(manifest, [])
    rig.run(0.5)
    assert (replica.id, 0) in rig.service.core.stages
    assert rig.loaded.stages == []
    rig.run(DRAIN_SECONDS)
    assert rig.service.core.stages == {}
    rig.run(0.1)
    assert rig.loaded.tensors == []


def test_where_memory_does_not_hold_both_nothing_is_loaded_before_the_old_stage_has_drained(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    replica = busy_replica(rig, manifest)
    held = set(rig.loaded.tensors)
    coming = make_replica(manifest, [("x", LayerRange(0, 3)), ("pi", LayerRange(3, 5))])
    rig.publish(PLAN, rig.plan(manifest, coming, version=2))
    rig.assign(manifest, [(coming, 1)], frees_first=True)
    rig.run(1.0)
    assert (replica.id, 0) in rig.service.core.stages
    assert (rig.loaded.state, rig.loaded.stages) == (LoadState.LOADING, [])
    assert set(rig.loaded.tensors) == held
    rig.send(replica.id, 0, Release(request_id="slow", attempt=0))
    rig.run(0.5)
    assert (rig.loaded.state, rig.loaded.stages) == (LoadState.LOADED, [f"{coming.id}/1"])
    assert not held & set(rig.loaded.tensors)


def test_an_answer_that_goes_on_for_long_gives_way_where_its_memory_is_waited_for(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    busy_replica(rig, manifest)
    coming = make_replica(manifest, [("x", LayerRange(0, 3)), ("pi", LayerRange(3, 5))])
    rig.publish(PLAN, rig.plan(manifest, coming, version=2))
    rig.assign(manifest, [(coming, 1)], frees_first=True)
    rig.run(HANDOVER_SECONDS - 0.5)
    assert rig.loaded.state is LoadState.LOADING
    rig.run(1.0)
    assert (rig.loaded.state, rig.loaded.stages) == (LoadState.LOADED, [f"{coming.id}/1"])
    (lost,) = [event for event in rig.events() if isinstance(event, Lost)]
    assert (lost.request_id, lost.kind) == ("slow", LossKind.PREEMPTED)


def test_a_coming_stage_is_loaded_beside_the_serving_one(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    now = rig.serve(manifest, LayerRange(0, 2), LayerRange(2, 5))
    coming = make_replica(manifest, [("pi", LayerRange(0, 3)), ("x", LayerRange(3, 5))])
    rig.publish(PLAN, rig.plan(manifest, coming, version=2))
    rig.assign(manifest, [(now, 0)], [(coming, 0)])
    rig.run(0.1)
    assert set(rig.loaded.stages) == {f"{now.id}/0", f"{coming.id}/0"}
    assert len(rig.loaded.tensors) == len(set(rig.loaded.tensors))


def test_more_room_for_kv_reaches_a_stage_that_serves(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    replica = rig.serve(manifest)
    fields = {name: getattr(replica, name) for name in replica.__struct_fields__}
    larger = Replica(**{**fields, "kv_tokens": 1024})
    stage = rig.service.core.stages[replica.id, 0]
    rig.publish(PLAN, rig.plan(manifest, larger, version=2))
    rig.assign(manifest, [(larger, 0)])
    rig.run(0.1)
    assert rig.service.core.stages[replica.id, 0] is stage
    assert stage.executor.kv.limit_tokens == 1024


def test_a_load_that_failed_says_what_is_missing_and_is_tried_again(
    rig: NodeRig, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "broken")
    broken = manifest_of(folder)
    file = sorted(folder.glob("*.safetensors"))[0]
    content = file.read_bytes()
    file.unlink()
    rig.serve(broken)
    failed = rig.loaded
    assert failed.state is LoadState.FAILED
    assert failed.error is not None
    assert file.name in failed.error
    file.write_bytes(content)
    rig.run(RETRY_SECONDS + 0.1)
    assert rig.loaded.state is LoadState.LOADED


# --- serving --------------------------------------------------------------------------------


def test_a_request_gets_the_tokens_of_the_executor_alone(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    replica = rig.serve(manifest)
    ask(rig, replica, "one", 12)
    rig.run(0.05)
    (granted,) = (event for event in rig.events() if isinstance(event, Granted))
    assert granted.state is GrantState.GRANTED
    open_request(rig, replica, "one", 12)
    rig.run_until(lambda: len(answer(rig, "one")) == 12)
    tokens = answer(rig, "one")
    assert [tokens[index] for index in range(12)] == expected_tokens(manifest, 12)


def test_telemetry_tells_of_recent_steps(rig: NodeRig, manifest: ModelManifest) -> None:
    replica = rig.serve(manifest)
    ask(rig, replica, "one", 12)
    rig.run(0.05)
    open_request(rig, replica, "one", 12)
    rig.run_until(lambda: len(answer(rig, "one")) == 12)
    rig.run(2.5)
    telemetry = rig.heard(DEVICE_TELEMETRY)[-1]
    assert set(telemetry.stage_seconds) == {replica.id}
    assert telemetry.tokens_per_second > 0
    assert telemetry.queue_length == 0
    assert telemetry.late_steps == 0


class BusyRig(NodeRig):
    """A node on a busy host: what it computes waits 50 ms for a core."""

    is_computing = False

    @property
    def now(self) -> float:
        if self.is_computing:
            self._seconds += 0.05
        return self._seconds

    @now.setter
    def now(self, seconds: float) -> None:
        self._seconds = seconds


def test_an_emulated_node_on_a_busy_host_reports_late_steps_and_no_loss_of_speed(
    manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = BusyRig(slowdown=2.0)
    run_next = rig.service.core.run_next

    def run_next_on_a_busy_host(clock: Callable[[], float]) -> bool:
        rig.is_computing = True
        did_run = run_next(clock)
        rig.is_computing = False
        return did_run

    monkeypatch.setattr(rig.service.core, "run_next", run_next_on_a_busy_host)
    rig.start()
    replica = rig.serve(manifest)
    ask(rig, replica, "one", 12)
    rig.run(0.05)
    open_request(rig, replica, "one", 12)
    rig.run_until(lambda: len(answer(rig, "one")) == 12)
    rig.run(2.5)
    telemetry = rig.heard(DEVICE_TELEMETRY)[-1]
    assert telemetry.stage_seconds[replica.id] > 0.04
    assert telemetry.late_steps >= 11
    assert telemetry.speed_ratio == 1.0


def test_an_idle_node_has_its_profile_speed(rig: NodeRig) -> None:
    rig.run(2.5)
    telemetry = rig.heard(DEVICE_TELEMETRY)[-1]
    assert telemetry.speed_ratio == 1.0
    assert telemetry.stage_seconds == {}
    assert telemetry.dropped_messages == 0


def test_what_a_lost_gateway_holds_is_freed_after_a_while(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    replica = rig.serve(manifest, LayerRange(0, 2), LayerRange(2, 5))
    ask(rig, replica, "orphan", 8)
    rig.run(0.05)
    open_request(rig, replica, "orphan", 8)
    rig.run(0.1)
    lost = GatewayStatus(state=DeviceState.LOST, session=5)
    rig.publish(GATEWAY_STATUS, lost, gateway="gateway")
    rig.run(3.0)
    assert rig.service.core.kv_used_tokens > 0
    rig.run(8.0)
    assert rig.service.core.kv_used_tokens == 0


def test_a_gateway_that_comes_back_in_time_keeps_what_it_holds(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    replica = rig.serve(manifest)
    rig.publish(GATEWAY_STATUS, GatewayStatus(state=DeviceState.LOST, session=5), gateway="gateway")
    rig.run(2.0)
    ready = GatewayStatus(state=DeviceState.READY, session=6)
    rig.publish(GATEWAY_STATUS, ready, gateway="gateway")
    rig.run(6.0)
    ask(rig, replica, "kept", 8)
    rig.run(4.0)
    open_request(rig, replica, "kept", 8)
    rig.run_until(lambda: len(answer(rig, "kept")) == 8)
    assert not [event for event in rig.events() if isinstance(event, Lost)]


# --- bad input ------------------------------------------------------------------------------


def rubbish(seed: int) -> list[bytes]:
    rng = random.Random(seed)
    whole = bytes(
        codec.encode_frame(
            Reserve(
                request_id="x",
                attempt=0,
                gateway="gateway",
                kind=ReserveKind.BOTH,
                known_tokens=4,
                max_tokens=4,
            )
        )
    )
    cut = [whole[:length] for length in range(1, len(whole), 7)]
    noise = [rng.randbytes(rng.randrange(1, 200)) for _ in range(20)]
    json = [b"{}", b"null", b"[1,2", b'{"version": "one"}', b'{"state":"ready"}', b"\xff\xfe"]
    return [*cut, *noise, *json, bytes(1 << 20)]


def test_rubbish_on_any_topic_is_counted_and_the_next_request_is_answered(
    rig: NodeRig, manifest: ModelManifest, caplog: pytest.LogCaptureFixture
) -> None:
    replica = rig.serve(manifest)
    caplog.set_level(logging.WARNING)
    payloads = rubbish(1)
    for payload in payloads:
        for topic in (STAGE_WORK, STAGE_KV, STAGE_CREDIT):
            rig.send_raw(topic, replica.id, 0, payload, "gateway")
        rig.publish(PLAN, payload)
        rig.publish(MODEL, payload, model="tiny")
        rig.publish(DEVICE_ASSIGNMENT, payload, device="pi")
        rig.publish(DEVICE_STATUS, payload, device="pi")
        rig.publish(GATEWAY_STATUS, payload, gateway="gateway")
        rig.run(0.05)
    ask(rig, replica, "after", 4)
    rig.run(0.05)
    open_request(rig, replica, "after", 4)
    rig.run_until(lambda: len(answer(rig, "after")) == 4)
    rig.run(2.5)
    assert rig.heard(DEVICE_TELEMETRY)[-1].dropped_messages >= 8 * len(payloads)
    lines = [record.getMessage() for record in caplog.records]
    assert any(STAGE_WORK.path("test", **_names(replica)) in line for line in lines)
    assert len(lines) < 8 * len(payloads) / 2


def test_a_message_from_somebody_else_than_the_plan_names_is_dropped(
    rig: NodeRig, manifest: ModelManifest
) -> None:
    replica = rig.serve(manifest)
    before = rig.service.core.kv_used_tokens
    rig.send(
        replica.id,
        0,
        Open(
            request_id="forged",
            attempt=0,
            gateway="gateway",
            prefill_replica=replica.id,
            decode_replica=replica.id,
            num_prompt_tokens=4,
            num_generated_tokens=0,
            max_tokens=4,
            sampling=Sampling(),
            prompt_ids=(5, 6, 7, 8),
        ),
        sender="stranger",
    )
    rig.run(0.1)
    assert rig.service.core.kv_used_tokens == before
    assert not rig.events()


@pytest.mark.parametrize("stage", ["7", "one"])
def test_a_message_for_a_stage_that_is_not_here_is_dropped(
    rig: NodeRig, manifest: ModelManifest, stage: str
) -> None:
    replica = rig.serve(manifest)
    frame = bytes(codec.encode_frame(Reserve(
        request_id="x", attempt=0, gateway="gateway", kind=ReserveKind.BOTH,
        known_tokens=4, max_tokens=4,
    )))  # fmt: skip
    rig.send_raw(STAGE_WORK, replica.id, stage, frame, "gateway")
    rig.run(2.5)
    assert rig.heard(DEVICE_TELEMETRY)[-1].dropped_messages == 1


def _names(replica: Replica) -> dict[str, str | int]:
    return {"replica": replica.id, "stage": 0, "device": "pi", "sender": "gateway"}
