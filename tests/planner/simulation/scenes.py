"""Small replicas, requests and scenarios for the simulator's tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from broker.control import Link
from broker.plan import Role
from planner.simulation import (
    GroupRule,
    KvReservation,
    Network,
    Record,
    Result,
    Scenario,
    SimReplica,
    SimRequest,
    SimStage,
    simulate,
)
from planner.simulation.tables import LinearDecode, PrefillCurve, prefill_rate
from planner.simulation.workloads import lognormal, poisson, requests

INSTANT = prefill_rate(1e12)


def stage(
    device: str,
    *,
    prompt: PrefillCurve = INSTANT,
    base: float = 0.01,
    row: float = 0.001,
    position: float = 0.0,
    **changes: Any,
) -> SimStage:
    return SimStage(
        device=device,
        prefill_seconds=prompt,
        decode_seconds=LinearDecode(base, row, position),
        **changes,
    )


def replica(name: str, role: Role, *stages: SimStage, **changes: Any) -> SimReplica:
    values: dict[str, Any] = {"slots": 4, "groups": GroupRule.BEST}
    return SimReplica(id=name, role=role, stages=stages, **{**values, **changes})


def both(name: str = "r", **changes: Any) -> SimReplica:
    values: dict[str, Any] = {"prompt": prefill_rate(100.0)}
    keys = {"slots", "kv_tokens", "chunk_tokens", "prefill_slots", "groups"}
    values.update({k: v for k, v in changes.items() if k not in keys})
    rest = {k: v for k, v in changes.items() if k in keys}
    return replica(name, Role.BOTH, stage(f"{name}-device", **values), **rest)


def at(*arrivals: float, prompt: int = 100, answer: int = 11) -> list[SimRequest]:
    return [SimRequest(arrival, prompt, answer) for arrival in arrivals]


def run(replicas: Iterable[SimReplica], arriving: Sequence[SimRequest], **changes: Any) -> Result:
    return simulate(Scenario(replicas=tuple(replicas), requests=arriving, **changes))


def only(result: Result) -> Record:
    (record,) = result.records
    return record


def random_fog(seed: int) -> tuple[tuple[SimReplica, ...], Network]:
    """Return two to four replicas of one to three unequal stages each, and their links."""
    rng = np.random.default_rng(seed)
    replicas = []
    roles = [Role.PREFILL, Role.DECODE, Role.BOTH, Role.BOTH]
    rng.shuffle(roles)
    for index in range(int(rng.integers(2, 5))):
        num_stages = int(rng.integers(1, 4))
        hop = float(rng.uniform(0, 0.003))
        replicas.append(
            replica(
                f"r{index}",
                roles[index],
                *(
                    stage(
                        f"d{index}{part}",
                        prompt=prefill_rate(float(rng.uniform(200, 3000))),
                        base=float(rng.uniform(0.002, 0.02)),
                        row=float(rng.uniform(0.0005, 0.004)),
                        position=float(rng.choice([0.0, 2e-6])),
                        layers=(part, part + 1),
                        hop_seconds=hop,
                        hop_row_seconds=float(rng.choice([0.0, 1e-5])),
                    )
                    for part in range(num_stages)
                ),
                slots=int(rng.integers(1, 8)),
                kv_tokens=float(rng.integers(700, 3000)),
                chunk_tokens=[None, 64, 128][int(rng.integers(3))],
                groups=list(GroupRule)[int(rng.integers(3))],
            )
        )
    links = {
        part.device: Link(latency_seconds=0.001, bytes_per_second=float(rng.uniform(1e5, 1e7)))
        for one in replicas
        for part in one.stages
    }
    return tuple(replicas), Network(links=links)


def random_scenario(seed: int, num_requests: int = 40, **changes: Any) -> Scenario:
    replicas, network = random_fog(seed)
    rng = np.random.default_rng(seed + 1000)
    arriving = requests(
        poisson(num_requests, float(rng.uniform(1, 15)), rng),
        lognormal(150, 0.6),
        lognormal(40, 0.8),
        rng,
    )
    arriving = tuple(
        SimRequest(r.arrival_seconds, min(r.prompt_tokens, 400), min(r.answer_tokens, 250))
        for r in arriving
    )
    values: dict[str, Any] = {
        "replicas": replicas,
        "requests": arriving,
        "network": network,
        "kv_bytes_per_token": 500.0,
        "num_layers": 6,
        "reservation": KvReservation.WHOLE,
    }
    return Scenario(**{**values, **changes})
