"""A steady fog whose every reading is off by up to 15 %, each time by something else."""

from __future__ import annotations

import random
from typing import Any, Final

from broker.control import DeviceState, GatewayStatus, Link, MeasuredLengths
from broker.telemetry import Telemetry
from planner.live.events import GatewaySeen
from tests.planner.live.harness import Bench

DEVICES: Final = "abcdef"
NOISE: Final = 0.15
LOOK_SECONDS: Final = 2.0
HOP_SECONDS: Final = 0.003
PROMPT, ANSWER = 64, 64
STEADY: Final[dict[str, Any]] = {
    "cpu_load_ratio": 0.6,
    # Together as much as a device offers: more would hide that it varies.
    "memory_available_bytes": 800_000,
    "memory_used_bytes": 300_000,
    "temperature_celsius": 60.0,
    "battery_ratio": 0.7,
    "is_charging": False,
    "speed_ratio": 1.0,
    "core_wait_ratio": 0.1,
    "queue_length": 400,
    "stage_seconds": {"r": 0.02},
    "stage_rows": {"r": 4.0},
    "prefill_token_seconds": {"r": 0.001},
    # Neither so fast nor so slow that it is cut to what counts.
    "link_latency_seconds": 0.004,
    "link_bytes_per_second": 8e6,
    "tokens_per_second": 50.0,
    "kv_used_tokens": 400,
    "kv_kept_tokens": 400,
    "kv_chunks_sent": 1000,
    "kv_chunks_received": 1000,
    "dropped_messages": 2000,
    "late_steps": 2000,
    "proposed_tokens": 2000,
    "accepted_tokens": 1000,
}
"""A value for each field that telemetry has."""
FAST: Final = {"link_latency_seconds": 0.0005, "link_bytes_per_second": 1e8}
"""Of a fog in which only computing takes time."""


def noisy(rng: random.Random, **changes: Any) -> Telemetry:
    """Return telemetry of a steady device, every field off by up to 15 %."""
    return Telemetry(**{name: _off(rng, v) for name, v in {**STEADY, **changes}.items()})


def _off(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, dict):
        return {key: _off(rng, each) for key, each in value.items()}
    off = value * rng.uniform(1 - NOISE, 1 + NOISE)
    return int(off) if isinstance(value, int) else off


def gateway(prompt: float, answer: float, requests: int = 64, **changes: Any) -> GatewaySeen:
    """Return what a gateway says of the requests that it saw."""
    measured = MeasuredLengths(num_requests=requests, prompt_tokens=prompt, answer_tokens=answer)
    status = GatewayStatus(state=DeviceState.READY, session=1, lengths=measured, **changes)
    return GatewaySeen("g", status)


def steady_fog(**changes: float) -> Bench:
    """Return a planner whose plan is for a fog of steady devices, as it is under load."""
    steady = Telemetry(**{**STEADY, **changes})
    assert steady.link_latency_seconds is not None
    assert steady.link_bytes_per_second is not None
    link = Link(
        latency_seconds=steady.link_latency_seconds,
        bytes_per_second=steady.link_bytes_per_second,
    )
    bench = Bench().connect().model().join(*DEVICES, link=link)
    for _ in range(30):
        bench.telemetry = dict.fromkeys(DEVICES, steady)
        bench.handle(gateway(PROMPT, ANSWER, hop_overhead_seconds=HOP_SECONDS))
        bench.run(LOOK_SECONDS, step=LOOK_SECONDS)
    return bench


def decisions_under_noise(bench: Bench, rng: random.Random, seconds: float) -> list[str]:
    """Let noise on all that is measured go on for so long; return what the planner decided."""
    known = len(bench.history.decisions)
    for _ in range(int(seconds / LOOK_SECONDS)):
        bench.telemetry = {name: noisy(rng) for name in DEVICES}
        off = [rng.uniform(1 - NOISE, 1 + NOISE) for _ in range(3)]
        hop = HOP_SECONDS * off[2]
        bench.handle(gateway(PROMPT * off[0], ANSWER * off[1], hop_overhead_seconds=hop))
        bench.run(LOOK_SECONDS, step=LOOK_SECONDS)
    return [decision.trigger for decision in bench.history.decisions[known:]]
