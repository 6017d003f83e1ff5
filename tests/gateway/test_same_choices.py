"""The gateway's policies and the simulated routings of the same names make the same choices.

A trace runs through the simulator; whenever its routing is asked, the gateway's is asked too,
with what a gateway would know of the same replicas. What it does not know is left out: the
links, and how much longer a prompt takes beside running answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from broker.plan import BatchSeconds, LayerRange, Rates, Replica, Role, Stage
from broker.room import Usage
from gateway import routing
from planner.simulation import Scenario, SimReplica, SimStage, simulate, simulator
from planner.simulation.engine import Engine
from planner.simulation.routing import LEAST_ADDED, LEAST_FINISH, PAPER_JSQ, Routing
from planner.simulation.states import Demand
from planner.simulation.tables import decode_times, prefill_rate
from planner.simulation.workloads import lognormal, poisson, requests

KV_TOKENS = 1_000_000
BOTH_SOME = (Role.BOTH, Role.BOTH, Role.DECODE, Role.PREFILL)
SEPARATE = (Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE)
Chosen = tuple[str, str] | None


def replicas(rng: np.random.Generator, roles: Sequence[Role]) -> list[SimReplica]:
    found = []
    for number, role in enumerate(roles):
        step = rng.uniform(0.02, 0.2)
        points = [(1, step), (4, step * rng.uniform(1.1, 2.0)), (16, step * 4)]
        stage = SimStage(
            device=f"d{number}",
            prefill_seconds=prefill_rate(rng.uniform(50, 500)),
            decode_seconds=decode_times(points),
        )
        found.append(
            SimReplica(
                id=f"r{number}",
                role=role,
                stages=(stage,),
                slots=int(rng.integers(1, 5)),
                kv_tokens=KV_TOKENS,
                prefill_slots=2,
            )
        )
    return found


def load_of(engine: Engine) -> routing.Load:
    """Return what a gateway knows whose requests are all that there are."""
    (stage,) = engine.replica.stages
    replica = Replica(
        id=engine.id,
        role=engine.role,
        slots=int(engine.slots),
        prefill_slots=engine.prefill_slots,
        kv_tokens=KV_TOKENS,
        stages=[
            Stage(
                device=stage.device,
                layers=LayerRange(0, 1),
                embedding=True,
                head=True,
                predicted_seconds=1.0,
                decode_seconds=[
                    BatchSeconds(rows, stage.decode_seconds(rows, 0.0)) for rows in (1, 4, 16)
                ],
            )
        ],
        predicted=Rates(prefill_tokens_per_second=engine.prefill_tokens_per_second),
    )
    return routing.Load(
        replica,
        own=Usage(
            prefills=engine.num_prompts,
            decodes=engine.num_decodes,
            complete=engine.num_complete,
        ),
        generated=tuple(engine.generated_tokens()),
        prefill_backlog_tokens=engine.pending_prompt_tokens,
    )


def demand_of(demand: Demand) -> routing.Demand:
    return routing.Demand(
        demand.prompt_tokens,
        max_tokens=demand.whole_tokens - demand.prompt_tokens,
        expected_tokens=demand.expected_tokens,
    )


def by_policy(policy: routing.Policy) -> Callable[[list[Engine], Demand], Chosen]:
    def choose(engines: list[Engine], demand: Demand) -> Chosen:
        loads = [load_of(engine) for engine in engines]
        if policy is routing.Policy.JSQ:
            pair = routing.shortest_queues(loads, demand_of(demand))
        else:
            pair = routing.choose_pair(loads, demand_of(demand), policy)
        return None if pair is None else (pair.prefill.replica.id, pair.decode.replica.id)

    return choose


def alone_seconds(engine: Engine, num_tokens: int) -> float:
    """Return the time of a prompt that stands beside no answers."""
    return num_tokens / engine.prefill_tokens_per_second


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("policy", "simulated", "roles"),
    [
        (policy, simulated, roles)
        for policy, simulated in (
            (routing.Policy.LEAST_FINISH, LEAST_FINISH),
            (routing.Policy.LEAST_ADDED, LEAST_ADDED),
            (routing.Policy.JSQ, PAPER_JSQ),
        )
        for roles in (SEPARATE, BOTH_SOME)
    ],
)
def test_a_trace_gets_the_same_choices_from_the_simulated_routing_and_the_gateways(
    policy: routing.Policy,
    simulated: Routing,
    roles: Sequence[Role],
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(seed)
    choices: list[tuple[Chosen, Chosen]] = []
    ask_gateway = by_policy(policy)

    def asked_twice(choose: Callable[..., Any]) -> Callable[..., Any]:
        def ask(engines: list[Engine], demand: Demand, *arguments: Any) -> Any:
            found = choose(engines, demand, *arguments)
            ids = None if found is None else (found[0].id, found[1].id)
            choices.append((ids, ask_gateway(engines, demand)))
            return found

        return ask

    for name in ("bind_late", "choose_pair"):
        monkeypatch.setattr(simulator, name, asked_twice(getattr(simulator, name)))
    monkeypatch.setattr(Engine, "prompt_seconds", alone_seconds)

    trace = requests(poisson(150, 2.0, rng), lognormal(200, 1.0), lognormal(40, 1.0), rng)
    simulate(Scenario(replicas=tuple(replicas(rng, roles)), requests=trace, routing=simulated))

    assert len(choices) >= 150
    assert [gateways for _, gateways in choices] == [ids for ids, _ in choices]
    assert len({ids for ids, _ in choices}) > 2
