"""The real dispatcher over real stages: nothing hangs, nothing differs, nothing is lost."""

import random
from typing import Any

import msgspec
import pytest
import torch

from broker.plan import Role
from broker.work import RequestKey, Sampling
from gateway.requests import GenerationFailedError
from nodes.outgoing import Timers
from tests.pipeline.test_tokens import (
    CHUNK,
    CONFIG,
    Source,
    alone,
    prompts,
    samplings,
    whole_executor,
)
from tests.support.pipeline import make_replica, open_keys
from tests.support.simulated import SimulatedFog

COUNT = 20


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(CONFIG)


@pytest.fixture(scope="module")
def expected(source: Source) -> dict[str, list[int]]:
    kinds = samplings(list(prompts()))
    return {name: alone(source, ids, kinds[name], COUNT) for name, ids in prompts().items()}


def fog_of(source: Source, **kwargs: Any) -> SimulatedFog:
    replicas = [
        make_replica((2, 5), ("a", "b"), Role.PREFILL),
        make_replica((1, 3, 5), ("c", "d", "e"), Role.DECODE),
        make_replica((3, 5), ("f", "g"), Role.BOTH),
    ]
    kwargs.setdefault("timers", Timers(repeat=0.5, repeats=6))
    return SimulatedFog(CONFIG, source, replicas, chunk_tokens=CHUNK, **kwargs)


def submit_all(fog: SimulatedFog, order: list[str] | None = None) -> None:
    kinds = samplings(list(prompts()))
    for name in order or list(prompts()):
        fog.submit(name, prompts()[name], max_tokens=COUNT, sampling=kinds[name])


def settle(fog: SimulatedFog, seconds: float = 30.0) -> None:
    until = fog.now + seconds
    while fog.now < until:
        fog.step()


def assert_nothing_is_held(fog: SimulatedFog) -> None:
    assert all(not keys for keys in open_keys(fog).values())
    masters = [stage.conductor for stage in fog.stages() if stage.conductor]
    assert all(master.reservations.used_tokens == 0 for master in masters)
    assert fog.dispatcher.num_running == fog.dispatcher.num_waiting == 0


def test_all_answers_are_those_of_the_whole_model_and_nothing_stays_behind(
    source: Source, expected: dict[str, list[int]]
) -> None:
    fog = fog_of(source)
    submit_all(fog)
    fog.run()
    assert fog.tokens == expected
    settle(fog, 2.0)
    assert_nothing_is_held(fog)
    assert not fog.rejected


def test_what_goes_well_is_no_line_in_the_log_of_a_node_or_of_the_dispatcher(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fog = fog_of(source)
    submit_all(fog)
    fog.run()
    assert fog.tokens
    assert caplog.messages == []


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_arrival_changes_no_token(
    source: Source, expected: dict[str, list[int]], seed: int
) -> None:
    order = list(prompts())
    random.Random(seed).shuffle(order)
    fog = fog_of(source)
    submit_all(fog, order)
    fog.run()
    assert fog.tokens == expected


@pytest.mark.parametrize("seed", range(8))
def test_five_per_cent_of_every_disturbance_changes_no_token_and_hangs_no_request(
    source: Source, expected: dict[str, list[int]], seed: int
) -> None:
    fog = fog_of(source, disturb=random.Random(100 + seed))
    submit_all(fog)
    fog.run()
    assert fog.tokens == expected
    settle(fog, 60.0)
    assert_nothing_is_held(fog)


@pytest.mark.parametrize("device", ["a", "b", "c", "d", "e", "f"])
@pytest.mark.parametrize("after", [0.02, 0.2, 0.6])
def test_a_device_that_dies_costs_a_pause_and_no_token(
    source: Source, expected: dict[str, list[int]], device: str, after: float
) -> None:
    fog = fog_of(source)
    submit_all(fog)
    settle(fog, after)
    fog.lose(device)
    fog.run()
    assert fog.tokens == expected


@pytest.mark.parametrize("device", ["", "a", "e"])
def test_log_probabilities_are_those_of_the_whole_model_whatever_happens(
    source: Source, device: str
) -> None:
    fog = fog_of(source, disturb=random.Random(3))
    kinds = samplings(list(prompts()))
    for name, ids in prompts().items():
        sampling = msgspec.structs.replace(kinds[name], top_logprobs=2)
        fog.submit(name, ids, max_tokens=COUNT, sampling=sampling)
    settle(fog, 0.2)
    if device:
        fog.lose(device)
    fog.run()
    for name in ("q0", "q3"):
        told = logprobs_of_whole_model(source, prompts()[name], fog.tokens[name])
        for index, (logprobs, row) in enumerate(zip(fog.logprobs[name], told, strict=True)):
            assert logprobs is not None
            assert logprobs.chosen == pytest.approx(row[fog.tokens[name][index]].item(), abs=1e-4)
            best = row.topk(2)
            assert [i for i, _ in logprobs.top] == best.indices.tolist()
            assert [value for _, value in logprobs.top] == pytest.approx(
                best.values.tolist(), abs=1e-4
            )


def logprobs_of_whole_model(
    source: Source, prompt: tuple[int, ...], tokens: list[int]
) -> list[torch.Tensor]:
    """Return the log probabilities of every token at each place of an answer."""
    found = []
    executor = whole_executor(source)
    key = RequestKey("alone", 0)
    executor.open(key, len(prompt) + len(tokens))
    for start in range(0, len(prompt), CHUNK):
        hidden = executor.prefill(key, executor.embed(prompt[start : start + CHUNK]), start)
    for token in tokens:
        found.append(executor.logits(hidden[-1:])[0].log_softmax(0))
        hidden = executor.decode([key], executor.embed([token]))
    return found


@pytest.mark.parametrize("device", ["b", "c", "d"])
def test_a_device_that_freezes_without_a_word_costs_a_longer_pause(
    source: Source, expected: dict[str, list[int]], device: str
) -> None:
    fog = fog_of(source)
    submit_all(fog)
    settle(fog, 0.2)
    fog.freeze(device)
    fog.run()
    assert fog.tokens == expected


def test_losing_a_role_lets_any_complete_replica_serve_both(
    source: Source, expected: dict[str, list[int]]
) -> None:
    fog = fog_of(source)
    fog.lose("f")
    fog.lose("d")
    submit_all(fog)
    fog.run()
    assert fog.tokens == expected


def test_a_cancelled_request_frees_everything_and_disturbs_nobody(
    source: Source, expected: dict[str, list[int]]
) -> None:
    fog = fog_of(source)
    submit_all(fog)
    settle(fog, 0.3)
    fog.cancel("q3")
    fog.finished["q3"] = "cancelled"
    got = list(fog.tokens.pop("q3"))
    del fog.finished["q3"]
    fog.run()
    assert fog.tokens == {name: ids for name, ids in expected.items() if name != "q3"}
    assert got == expected["q3"][: len(got)]
    settle(fog, 2.0)
    assert_nothing_is_held(fog)


def test_ten_times_what_kv_holds_queues_and_finishes(source: Source) -> None:
    replicas = [
        make_replica((2, 5), ("a", "b"), Role.PREFILL, kv_tokens=256),
        make_replica((1, 5), ("c", "d"), Role.DECODE, kv_tokens=256),
    ]
    fog = SimulatedFog(CONFIG, source, replicas, chunk_tokens=CHUNK)
    asked = prompts(tuple([100] * 25))
    for name, ids in asked.items():
        fog.submit(name, ids, max_tokens=30, sampling=Sampling())
    fog.run(3000)
    assert set(fog.finished.values()) == {"length"}
    whole = alone(source, asked["q7"], Sampling(), 30)
    assert fog.tokens["q7"] == whole


def test_a_row_that_fails_everywhere_fails_its_request_and_no_other(
    source: Source, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fog = fog_of(source)
    for stage in fog.stages():
        whole = stage.executor.prefill_by_layer

        def prefill(key: Any, hidden: Any, start: int, run: Any = whole) -> Any:
            if key.request_id == "bad":
                raise RuntimeError("planted")
            return run(key, hidden, start)

        monkeypatch.setattr(stage.executor, "prefill_by_layer", prefill)
    submit_all(fog)
    fog.submit("bad", (5, 6, 7), max_tokens=5)
    fog.run()
    error = fog.finished.pop("bad")
    assert isinstance(error, GenerationFailedError)
    assert {name: fog.tokens[name] for name in expected} == expected
