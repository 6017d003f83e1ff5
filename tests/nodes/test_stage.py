"""A stage answers by position and accepts work only from those that the plan names."""

import pytest
import torch

from broker.events import LossKind, Lost, Opened, Tokens
from broker.plan import Role
from broker.work import (
    Forward,
    KvChunk,
    Live,
    Open,
    PrefillProgress,
    Release,
    Repeat,
    RequestKey,
    Resend,
    Reserve,
    ReserveKind,
    RowFailed,
    Sampling,
    Step,
    StepRow,
    TensorMeta,
)
from nodes.context import UnexpectedMessageError
from nodes.outgoing import Outgoing, Timers, ToGateway, ToStage
from nodes.stage import StageCore
from tests.support.checkpoints import FAMILIES, random_tensors
from tests.support.pipeline import SmallFog, make_replica

CONFIG = FAMILIES["llama"]
HIDDEN = CONFIG["hidden_size"]
KEY = RequestKey("q", 0)


class Source:
    def __init__(self) -> None:
        self._tensors = random_tensors(CONFIG)

    def load_tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


@pytest.fixture(scope="module")
def source() -> Source:
    return Source()


@pytest.fixture
def fog(source: Source) -> SmallFog:
    replicas = [
        make_replica((2, 4, 5), ("a", "b", "c"), Role.BOTH),
        make_replica((5,), ("d",), Role.DECODE),
    ]
    timers = Timers(repeat=0.2, repeats=3)
    return SmallFog(CONFIG, source, replicas, chunk_tokens=4, timers=timers)


def stage(fog: SmallFog, index: int) -> StageCore:
    replica = fog.replicas[0]
    return fog.devices[replica.stages[index].device].stages[replica.id, index]


def opening(fog: SmallFog, **changes: object) -> Open:
    fields: dict[str, object] = {
        "request_id": "q",
        "attempt": 0,
        "gateway": "g",
        "prefill_replica": fog.replicas[0].id,
        "decode_replica": fog.replicas[0].id,
        "num_prompt_tokens": 6,
        "num_generated_tokens": 0,
        "max_tokens": 5,
        "sampling": Sampling(),
        "prompt_ids": (3, 4, 5, 6, 7, 8),
    }
    return Open(**(fields | changes))  # type: ignore[arg-type]


def forward(start: int, rows: int = 4, **changes: object) -> Forward:
    fields: dict[str, object] = {
        "request_id": "q",
        "attempt": 0,
        "start_position": start,
        "tensor": TensorMeta("float32", (rows, HIDDEN)),
    }
    return Forward(**(fields | changes))  # type: ignore[arg-type]


def activations(rows: int = 4) -> bytes:
    return bytes(rows * HIDDEN * 4)


def headers(messages: list[Outgoing], kind: type) -> list[Outgoing]:
    return [message for message in messages if isinstance(message.header, kind)]


def run_all(core: StageCore) -> list[Outgoing]:
    while core.has_work():
        core.run_next(lambda: 1.0)
    return core.drain()


def test_a_chunk_at_the_kv_length_runs_and_a_repeated_one_gets_the_stored_result(
    fog: SmallFog,
) -> None:
    middle = stage(fog, 1)
    middle.handle("g", opening(fog, prompt_ids=()), b"", 0.0)
    middle.handle("a", forward(0), activations(), 0.0)
    (first,) = headers(run_all(middle), Forward)
    middle.handle("a", forward(0), activations(), 0.0)
    (second,) = headers(run_all(middle), Forward)
    assert isinstance(first, ToStage)
    assert isinstance(second, ToStage)
    assert (second.header, bytes(second.tensor)) == (first.header, bytes(first.tensor))
    assert middle.executor.length(KEY) == 4


def test_a_stage_that_must_go_asks_the_master_to_send_its_requests_elsewhere(fog: SmallFog) -> None:
    middle = stage(fog, 1)
    middle.handle("g", opening(fog, prompt_ids=()), b"", 0.0)
    middle.dismiss("its layers make room", 1.0)
    middle.dismiss("its layers make room", 1.1)
    (asked,) = headers(middle.drain(), RowFailed)
    assert isinstance(asked, ToStage)
    assert (asked.stage, asked.device) == (0, "a")
    assert asked.header == RowFailed(
        request_id="q", attempt=0, error="its layers make room", retry=True
    )
    middle.handle("a", Release(request_id="q", attempt=0), b"", 1.2)
    assert middle.is_idle


def test_kv_chunks_are_counted_where_they_leave_and_where_they_arrive(source: Source) -> None:
    replicas = [
        make_replica((2, 5), ("a", "b"), Role.PREFILL),
        # The second stage needs no message for what its own device has.
        make_replica((3, 5), ("c", "b"), Role.DECODE),
    ]
    fog = SmallFog(CONFIG, source, replicas, chunk_tokens=4)
    fog.ask("q", (3, 4, 5, 6, 7, 8), *replicas, max_tokens=3)
    fog.run()
    sent = {name: core.kv_chunks_sent for name, core in fog.devices.items()}
    received = {name: core.kv_chunks_received for name, core in fog.devices.items()}
    assert sent["a"] > 0
    assert sum(sent.values()) == sum(received.values())
    assert (sent["c"], received["a"], received["b"]) == (0, 0, 0)


def test_a_chunk_beyond_the_kv_length_asks_once_for_a_repeat_from_there(fog: SmallFog) -> None:
    middle = stage(fog, 1)
    middle.handle("g", opening(fog, prompt_ids=()), b"", 0.0)
    for _ in range(3):
        middle.handle("a", forward(4, 2), activations(2), 0.0)
    (asked,) = headers(run_all(middle), Repeat)
    assert isinstance(asked, ToStage)
    assert asked.device == "a"
    assert isinstance(asked.header, Repeat)
    assert asked.header.position == 0


@pytest.mark.parametrize(("index", "sender"), [(1, "c"), (1, "stranger"), (1, "d"), (2, "a")])
def test_activations_from_anyone_but_the_stage_before_are_refused(
    fog: SmallFog, index: int, sender: str
) -> None:
    core = stage(fog, index)
    core.handle("g", opening(fog), b"", 0.0)
    with pytest.raises(UnexpectedMessageError, match="sender"):
        core.handle(sender, forward(0), activations(), 0.0)
    step = Step(group=0, rows=[StepRow("q", 0, 6, 1)], tensor=TensorMeta("float32", (1, HIDDEN)))
    with pytest.raises(UnexpectedMessageError, match="sender"):
        core.handle(sender, step, activations(1), 0.0)


def test_only_its_own_gateway_or_master_releases_a_request(fog: SmallFog) -> None:
    core = stage(fog, 1)
    core.handle("g", opening(fog), b"", 0.0)
    with pytest.raises(UnexpectedMessageError):
        core.handle("other-gateway", Release(request_id="q", attempt=0), b"", 0.0)
    with pytest.raises(UnexpectedMessageError):
        core.handle("c", Release(request_id="q", attempt=0), b"", 0.0)
    core.handle("a", Release(request_id="q", attempt=0), b"", 0.0)
    assert core.is_idle
    assert core.executor.used_tokens == 0


@pytest.mark.parametrize("shape", [(4, HIDDEN + 1), (0, HIDDEN), (4,), (4, HIDDEN, 1)])
def test_wrongly_shaped_activations_are_refused(fog: SmallFog, shape: tuple[int, ...]) -> None:
    core = stage(fog, 1)
    core.handle("g", opening(fog), b"", 0.0)
    tensor = TensorMeta("float32", shape)
    with pytest.raises(UnexpectedMessageError, match="expected"):
        core.handle("a", forward(0, tensor=tensor), bytes(tensor.num_bytes), 0.0)


def test_a_chunk_off_the_grid_is_dropped_and_counted(fog: SmallFog) -> None:
    core = stage(fog, 1)
    core.handle("g", opening(fog), b"", 0.0)
    core.handle("a", forward(0, 5), activations(5), 0.0)
    run_all(core)
    assert core.dropped["chunk off the grid"] == 1
    assert core.executor.length(KEY) == 0


def test_data_of_an_unknown_released_or_older_attempt_is_counted_and_dropped(
    fog: SmallFog,
) -> None:
    core = stage(fog, 1)
    core.handle("a", forward(0), activations(), 0.0)
    assert core.dropped["unknown request"] == 1
    core.handle("g", opening(fog, attempt=1), b"", 0.0)
    core.handle("a", forward(0), activations(), 0.0)
    core.handle("g", opening(fog, attempt=0), b"", 0.0)
    assert core.dropped["stale"] == 2
    core.handle("a", Release(request_id="q", attempt=1), b"", 0.0)
    core.handle("a", forward(0, attempt=1), activations(), 0.0)
    assert core.dropped["stale"] == 3
    core.tick(100.0)
    core.handle("a", forward(0, attempt=1), activations(), 100.0)
    assert core.dropped["unknown request"] == 2


def test_a_newer_attempt_frees_the_older_one(fog: SmallFog) -> None:
    core = stage(fog, 1)
    core.handle("g", opening(fog), b"", 0.0)
    core.handle("g", opening(fog, attempt=1), b"", 0.0)
    assert not core.executor.has(KEY)
    assert core.executor.has(RequestKey("q", 1))


def test_an_open_is_answered_each_time_and_kv_is_reserved_once(fog: SmallFog) -> None:
    core = stage(fog, 1)
    for _ in range(2):
        core.handle("g", opening(fog), b"", 0.0)
    assert len(headers(core.drain(), Opened)) == 2
    assert core.executor.used_tokens == 32


def test_an_open_without_a_grant_is_reported_lost(fog: SmallFog) -> None:
    master = stage(fog, 0)
    master.handle("g", opening(fog), b"", 0.0)
    (lost,) = headers(master.drain(), Lost)
    assert isinstance(lost.header, Lost)
    assert lost.header.kind is LossKind.STALLED
    assert "grant" in lost.header.reason


def test_a_request_that_its_master_does_not_name_is_freed(fog: SmallFog) -> None:
    core = stage(fog, 1)
    core.handle("g", opening(fog), b"", 0.0)
    core.tick(14.0)
    core.handle("a", Live(requests=[KEY]), b"", 14.0)
    core.tick(28.0)
    assert not core.is_idle
    core.tick(29.1)
    assert core.is_idle


def test_messages_for_the_master_are_refused_elsewhere(fog: SmallFog) -> None:
    core = stage(fog, 1)
    core.handle("g", opening(fog), b"", 0.0)
    ask = Reserve(
        request_id="x", attempt=0, gateway="g", kind=ReserveKind.BOTH, known_tokens=1, max_tokens=1
    )
    with pytest.raises(UnexpectedMessageError, match="master"):
        core.handle("g", ask, b"", 0.0)
    progress = PrefillProgress(request_id="q", attempt=0, end_position=4)
    with pytest.raises(UnexpectedMessageError, match="master"):
        core.handle("c", progress, b"", 0.0)


def test_kv_for_a_request_that_prefills_here_is_refused(fog: SmallFog) -> None:
    core = stage(fog, 1)
    core.handle("g", opening(fog), b"", 0.0)
    chunk = KvChunk(
        request_id="q", attempt=0, layers=fog.replicas[0].stages[1].layers, position=0,
        num_positions=1, offset=0, total=1, checksum=0, tensor=TensorMeta("float32", (0,)),
    )  # fmt: skip
    with pytest.raises(UnexpectedMessageError):
        core.handle("a", chunk, b"", 0.0)


def test_kv_of_a_chunk_leaves_before_the_next_chunk_is_computed(fog: SmallFog) -> None:
    core = stage(fog, 1)
    core.handle("g", opening(fog, decode_replica=fog.replicas[1].id, prompt_ids=()), b"", 0.0)
    for start, rows in ((0, 4), (4, 2)):
        core.handle("a", forward(start, rows), activations(rows), 0.0)
    order: list[tuple[str, int]] = []
    while core.has_work():
        core.run_next(lambda: 1.0)
        order.append(("computed until", core.executor.length(RequestKey("q", 0))))
        order += [
            ("sent from", message.header.position)
            for message in headers(core.drain(), KvChunk)
            if isinstance(message.header, KvChunk)
        ]
    assert order == [
        ("computed until", 4), ("sent from", 0), ("computed until", 6), ("sent from", 4),
    ]  # fmt: skip


def test_a_row_whose_forward_pass_raises_fails_alone(
    fog: SmallFog, monkeypatch: pytest.MonkeyPatch
) -> None:
    fog.ask("good", (3, 4, 5), fog.replicas[0], fog.replicas[0], max_tokens=8)
    fog.ask("bad", (6, 7, 8), fog.replicas[0], fog.replicas[0], max_tokens=8)
    middle = stage(fog, 1).executor
    whole = middle.decode

    def decode(keys: list[RequestKey], hidden: torch.Tensor) -> torch.Tensor:
        if any(key.request_id == "bad" for key in keys):
            raise RuntimeError("planted")
        return whole(keys, hidden)

    monkeypatch.setattr(middle, "decode", decode)
    for _ in range(400):
        fog.step()
    assert len(fog.answers["good"].tokens) == 8
    assert {lost.kind for lost in fog.answers["bad"].lost} == {LossKind.FAILED}
    assert "planted" in fog.answers["bad"].lost[0].reason


def test_a_row_that_finds_no_kv_room_in_a_step_goes_back_to_the_queue_alone(
    fog: SmallFog,
) -> None:
    endless = Sampling(ignore_eos=True)
    replica = fog.replicas[0]
    fog.ask("short", (3, 4, 5), replica, replica, max_tokens=24, sampling=endless)
    fog.ask("long", (6, 7, 8), replica, replica, max_tokens=60, sampling=endless)
    while min(len(answer.tokens) for answer in fog.answers.values()) < 3:
        fog.step()
    kv = stage(fog, 1).executor.kv
    limit, kv.limit_tokens = kv.limit_tokens, 0
    while not fog.answers["long"].lost:
        assert fog.answers["long"].finish_reason is None, "it found room"
        fog.step()
    kv.limit_tokens = limit
    fog.run()
    (lost,) = fog.answers["long"].lost
    assert lost.kind is LossKind.STALLED
    assert "KV positions" in lost.reason
    assert [len(fog.answers[name].tokens) for name in ("short", "long")] == [24, 60]
    assert not fog.answers["short"].lost


def test_a_stage_that_answers_no_more_is_reported_after_n_repeats(fog: SmallFog) -> None:
    fog.ask("q", (3, 4, 5), fog.replicas[0], fog.replicas[0], max_tokens=50)
    while len(fog.answers["q"].tokens) < 3:
        fog.step()
    del fog.devices["b"]
    started = fog.now
    while not fog.answers["q"].lost:
        fog.step()
        assert fog.now - started < 20
    assert fog.answers["q"].lost[0].kind is LossKind.STALLED


def test_the_last_stage_repeats_tokens_even_after_the_end(fog: SmallFog) -> None:
    replica = fog.replicas[1]
    fog.ask("q", (3, 4, 5), replica, replica, max_tokens=4)
    fog.run()
    core = fog.devices["d"].stages[replica.id, 0]
    fog.devices["d"].drain(fog.now)
    ask = Resend(request_id="q", attempt=0, gateway="gateway-1", index=1)
    core.handle("gateway-1", ask, b"", fog.now)
    (again,) = headers(core.drain(), Tokens)
    assert isinstance(again, ToGateway)
    assert isinstance(again.header, Tokens)
    assert [row.token_id for row in again.header.rows] == fog.answers["q"].tokens[1:]
    assert again.header.rows[-1].finish_reason == "length"
    with pytest.raises(UnexpectedMessageError):
        core.handle("thief", ask, b"", fog.now)


def test_a_stage_without_room_sends_the_request_back_to_the_queue(source: Source) -> None:
    replica = make_replica((2, 5), ("a", "b"), Role.BOTH, kv_tokens=64)
    fog = SmallFog(CONFIG, source, [replica], chunk_tokens=4)
    core = fog.devices["b"].stages[replica.id, 1]
    names = {"prefill_replica": replica.id, "decode_replica": replica.id}
    core.handle("g", opening(fog, request_id="first", **names), b"", 0.0)
    long = tuple(range(3, 63))
    late = opening(fog, num_prompt_tokens=60, prompt_ids=long, **names)
    core.handle("g", late, b"", 0.0)
    (failed,) = headers(core.drain(), RowFailed)
    assert isinstance(failed.header, RowFailed)
    assert failed.header.retry


def test_a_prompt_longer_than_any_memory_finds_no_room_and_takes_none(source: Source) -> None:
    decode = make_replica((2, 3, 5), ("a", "b", "c"), Role.DECODE)
    prefill = make_replica((5,), ("d",), Role.PREFILL)
    fog = SmallFog(CONFIG, source, [decode, prefill], chunk_tokens=4)
    # Neither first nor last, so it never sees the prompt itself.
    core = fog.devices["b"].stages[decode.id, 1]
    names = {"prefill_replica": prefill.id, "decode_replica": decode.id}
    core.handle("g", opening(fog, num_prompt_tokens=2**62, prompt_ids=(), **names), b"", 0.0)
    (failed,) = headers(core.drain(), RowFailed)
    assert isinstance(failed.header, RowFailed)
    assert failed.header.retry
    assert core.is_idle


def test_the_grants_of_a_lost_gateway_are_given_back(fog: SmallFog) -> None:
    master = stage(fog, 0)
    ask = Reserve(
        request_id="q", attempt=0, gateway="g", kind=ReserveKind.BOTH, known_tokens=6, max_tokens=5
    )
    master.handle("g", ask, b"", 0.0)
    master.handle("g", opening(fog), b"", 0.0)
    master.gateway_lost("g", 1.0)
    fog.devices["a"].drain(1.0)
    assert master.is_idle
    assert master.conductor is not None
    assert master.conductor.reservations.used_tokens == 0
