"""Plans simulated: what the planner promises is what the simulator measures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from broker.control import Link
from broker.plan import Plan, Role
from planner import DeviceSpec, ModelSpec, Objective, Roles, Workload, plan
from planner.simulation import Scenario, SimReplica, SimRequest, simulate
from planner.simulation.replicas import (
    kv_bytes_per_token,
    network_of,
    replicas_from_plan,
    replicas_from_rates,
)
from planner.simulation.routing import PAPER_JSQ
from planner.simulation.workloads import constant, fixed_period, requests
from tests.planner import fogs
from tests.planner.fogs import random_fog

WORK = Workload(prompt_tokens=256, answer_tokens=120, context_tokens=700)


def _planned(seed: int, roles: Roles = Roles.SEPARATE) -> tuple[Plan, list[DeviceSpec], ModelSpec]:
    devices, model = random_fog(seed, 5, low=0.4, high=0.9)
    objective = Objective(roles=roles, population=16, generations=5)
    return plan(devices, model, WORK, objective), devices, model


def _arriving(num_requests: int, period: float) -> tuple[SimRequest, ...]:
    arrivals = fixed_period(num_requests, period)
    return requests(arrivals, constant(256), constant(120), np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(6))
def test_a_lone_request_meets_the_plans_latencies(seed: int) -> None:
    made, devices, model = _planned(seed)
    replicas = replicas_from_plan(made, devices, model, WORK)
    by_id = {replica.id: replica for replica in made.replicas}

    result = simulate(
        Scenario(
            replicas=replicas,
            requests=_arriving(1, 1.0),
            network=network_of(devices),
            kv_bytes_per_token=kv_bytes_per_token(model),
            num_layers=model.num_layers,
        )
    )

    (record,) = result.records
    prefill = by_id[record.prefill_replica].predicted
    decode = by_id[record.decode_replica].predicted
    assert record.ttft_seconds == pytest.approx(prefill.ttft_seconds, rel=0.1)
    assert 1 / record.decode_speed == pytest.approx(decode.tpot_seconds, rel=0.05)


@pytest.mark.parametrize("prompt_tokens", [20, 700])
def test_hidden_states_pass_the_hops_between_stages_and_not_the_one_round_the_ring(
    prompt_tokens: int,
) -> None:
    found, model = random_fog(0, 2, low=0.6, high=0.7)
    slow = Link(latency_seconds=0.001, bytes_per_second=200_000)
    fast = Link(latency_seconds=0.001, bytes_per_second=1e9)
    devices = [replace(one, link=link) for one, link in zip(found, (fast, slow), strict=True)]
    work = Workload(prompt_tokens=prompt_tokens, answer_tokens=2, context_tokens=800, min_tps=0.1)
    made = plan(devices, model, work)

    result = simulate(
        Scenario(
            replicas=replicas_from_plan(made, devices, model, work),
            requests=[SimRequest(0.0, prompt_tokens, 2)],
            network=network_of(devices),
        )
    )

    (one,) = made.replicas
    assert len(one.stages) == 2
    # The slow link carries the hidden states longer than the stages compute.
    seconds = prompt_tokens * model.activation_bytes / slow.bytes_per_second
    assert result.records[0].ttft_seconds > 0.5 * seconds
    assert one.predicted.ttft_seconds == pytest.approx(result.records[0].ttft_seconds, rel=0.1)


@pytest.mark.parametrize("seed", range(6))
def test_a_saturated_fog_delivers_what_the_plan_predicts(seed: int) -> None:
    made, devices, model = _planned(seed)
    predicted = made.predicted.requests_per_second
    assert predicted is not None
    replicas = replicas_from_plan(made, devices, model, WORK)

    result = simulate(
        Scenario(replicas=replicas, requests=_arriving(400, 0.7 / predicted), routing=PAPER_JSQ)
    )

    # Between the first and the last minute; growing contexts and grouping leave a rest.
    ends = sorted(record.finish for record in result.records)[100:300]
    rate = (len(ends) - 1) / (ends[-1] - ends[0])
    assert rate == pytest.approx(predicted, rel=0.12)


def test_a_hop_takes_the_direct_way_where_there_is_one() -> None:
    model = fogs.model()
    whole = model.stage_bytes(0, model.num_layers, WORK.context_tokens)
    devices = [fogs.device(f"d{n}", 0.002, int(0.6 * whole)) for n in range(2)]
    direct = Link(latency_seconds=0.00001, bytes_per_second=1e9)
    near = [replace(devices[0], peers={"d1": direct}), devices[1]]
    made = plan(near, model, WORK)

    (replica,) = replicas_from_plan(made, near, model, WORK)
    (star,) = replicas_from_plan(made, devices, model, WORK)

    # One way only is direct: the ring goes back over the broker.
    places = {stage.device: index for index, stage in enumerate(replica.stages)}
    into_d1, into_d0 = replica.stages[places["d1"]], replica.stages[places["d0"]]
    assert into_d1.hop_seconds == direct.latency_seconds
    per_byte = 1 / direct.bytes_per_second
    assert into_d1.hop_row_seconds == pytest.approx(model.activation_bytes * per_byte)
    assert into_d0.hop_seconds == star.stages[places["d0"]].hop_seconds > direct.latency_seconds
    assert star.stages[places["d1"]].hop_seconds > direct.latency_seconds


def test_rates_alone_give_nearly_the_same_throughput_as_profiles() -> None:
    made, devices, model = _planned(2)

    def rate(replicas: tuple[SimReplica, ...]) -> float:
        scenario = Scenario(replicas=replicas, requests=_arriving(300, 0.001))
        return simulate(scenario).summary().requests_per_second

    assert rate(replicas_from_rates(made)) == pytest.approx(
        rate(replicas_from_plan(made, devices, model, WORK)), rel=0.15
    )


def test_replicas_keep_roles_slots_memory_and_layers_of_the_plan() -> None:
    made, devices, model = _planned(1, Roles.MIXED)

    for found in (replicas_from_plan(made, devices, model, WORK), replicas_from_rates(made)):
        assert len(found) == len(made.replicas)
        for simulated, planned in zip(found, made.replicas, strict=True):
            assert (simulated.id, simulated.role) == (planned.id, planned.role)
            assert simulated.role in set(Role)
            assert (simulated.slots, simulated.kv_tokens) == (planned.slots, planned.kv_tokens)
            assert [stage.layers for stage in simulated.stages] == [
                (stage.layers.start, stage.layers.end) for stage in planned.stages
            ]


def test_a_slower_device_makes_its_stages_slower() -> None:
    made, devices, model = _planned(1)
    halved = [replace(device, speed=device.speed / 2) for device in devices]

    fast = replicas_from_plan(made, devices, model, WORK)[0].stages[0]
    slow = replicas_from_plan(made, halved, model, WORK)[0].stages[0]

    assert slow.prefill_seconds(100, 0) == pytest.approx(2 * fast.prefill_seconds(100, 0))
    assert slow.decode_seconds(2, 300) == pytest.approx(2 * fast.decode_seconds(2, 300))


def test_a_plan_with_unknown_devices_is_refused() -> None:
    made, devices, model = _planned(1)
    gone = made.replicas[0].stages[0].device

    with pytest.raises(ValueError, match=gone):
        replicas_from_plan(made, [d for d in devices if d.id != gone], model, WORK)


def test_what_lies_in_host_memory_is_as_slow_as_planned() -> None:
    model = fogs.model(8, ffn_bytes=(800_000,) * 8)
    own = fogs.device("a", 0.001, model.stage_bytes(0, 8, WORK.context_tokens) - 1_500_000)
    slow = {"full": fogs.layer_times(0.004)}
    device = replace(own, host_memory_bytes=10_000_000, offloaded=slow)
    made = plan([device], model, WORK, Objective())

    result = simulate(
        Scenario(
            replicas=replicas_from_plan(made, [device], model, WORK), requests=_arriving(1, 1.0)
        )
    )

    (record,) = result.records
    predicted = made.replicas[0].predicted
    assert "in host memory" in made.reasons["a"]
    assert record.ttft_seconds == pytest.approx(predicted.ttft_seconds, rel=0.1)
    assert 1 / record.decode_speed == pytest.approx(predicted.tpot_seconds, rel=0.05)
