"""Parts of `benchmarks.live` about limits: memory under a flood, the broker under KV transfer."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import Any, Final

from benchmarks.live_fog import LiveFog, Plan, live_fog
from benchmarks.live_load import findings, long_jobs
from benchmarks.live_parts import Found, Lab, default_fog
from broker.architecture import kv_bytes_per_token, parse_config
from broker.conditions import Condition
from fog.chaos.load import Load
from fog.config import FogConfig
from fog.model_choice import DEMO_MODEL
from tests.support.dropped import DroppedMessages

BEYOND_BYTES: Final = 320_000_000
"""What a node may take beside weights and KV."""
FLOOD: Final = 10
NUM_PROMPTS: Final = 4
FLOOD_TOKENS, FLOOD_ANSWER = 1200, 16
FLOOD_SECONDS: Final = 500.0
TRANSFER_TOKENS, TRANSFER_ANSWER = 1200, 4
TRANSFER_REQUESTS: Final = 16
TRANSFER_SECONDS: Final = 240.0
SLOW: Final = Condition(slowdown=4.0, link_bytes_per_second=1_250_000.0)
"""Of the decode node: a link of 10 Mbit/s."""
REST_SECONDS: Final = 5.0


def flood(lab: Lab) -> Found:
    """Long prompts at once, ten times as many as the KV memory of the fog holds."""
    found = Found()
    config = _whole_prompts(FLOOD_TOKENS, FLOOD_ANSWER)
    with live_fog(lab.folder, config) as fog, fog.watched_memory():
        jobs = long_jobs(fog.client, NUM_PROMPTS, FLOOD_TOKENS, FLOOD_ANSWER)
        plan = fog.client.plan()
        kv_tokens = sum(replica["kv_tokens"] for replica in plan["replicas"])
        each = len(jobs[0].undisturbed.prompt_token_ids) + FLOOD_ANSWER
        count = math.ceil(FLOOD * kv_tokens / each)
        began = time.monotonic()
        load = Load(fog.url, jobs, count, num_requests=count, patience_seconds=FLOOD_SECONDS)
        load.start()
        hanging = load.wait(FLOOD_SECONDS)
        seconds = time.monotonic() - began
        limits = _memory_limits(fog, plan)
        found.processes(fog)
    beyond = {name: fog.peaks[name] - limit for name, limit in limits.items()}
    found.figures |= {
        "kv_tokens": kv_tokens,
        "prompt_tokens": len(jobs[0].undisturbed.prompt_token_ids),
        "seconds": round(seconds, 1),
        "refused": sum(outcome.num_refused for outcome in load.outcomes),
        "peaks_mb": {name: round(peak / 1e6, 1) for name, peak in sorted(fog.peaks.items())},
        "weights_and_kv_mb": {name: round(limit / 1e6, 1) for name, limit in limits.items()},
    }
    found.answers(findings(load.outcomes, hanging))
    what = "most that a node takes beside weights and KV, MB"
    found.at_most(what, max(beyond.values()) / 1e6, BEYOND_BYTES / 1e6)
    return found


def mosquitto(lab: Lab) -> Found:
    """KV for a slow node through Mosquitto, which counts what it drops."""
    return _transfer(lab, "mosquitto")


def embedded(lab: Lab) -> Found:
    """KV for a slow node through the embedded broker."""
    return _transfer(lab, "amqtt")


def _transfer(lab: Lab, broker: str) -> Found:
    found = Found()
    # Answers that are planned to be long leave most devices to decode.
    config = _whole_prompts(TRANSFER_TOKENS, TRANSFER_TOKENS)
    with live_fog(lab.folder, config, broker=broker) as fog:
        dropped = DroppedMessages(fog.planner_address) if broker == "mosquitto" else None
        jobs = long_jobs(fog.client, NUM_PROMPTS, TRANSFER_TOKENS, TRANSFER_ANSWER)
        plan = fog.client.plan()
        roles = {replica["role"]: replica for replica in plan["replicas"]}
        slowed = roles["decode"]["stages"][0]["device"]
        # Or it would plan without the slow node.
        fog.freeze("planner")
        fog.suffer(slowed, SLOW)
        time.sleep(REST_SECONDS)
        before = _chunks(fog)
        load = Load(fog.url, jobs, 16, num_requests=TRANSFER_REQUESTS,
                    patience_seconds=TRANSFER_SECONDS)  # fmt: skip
        began = time.monotonic()
        load.start()
        hanging = load.wait(TRANSFER_SECONDS)
        seconds = time.monotonic() - began
        fog.suffer(slowed, Condition())
        time.sleep(REST_SECONDS)
        sent, received = (now - then for now, then in zip(_chunks(fog), before, strict=True))
        if dropped is not None:
            found.at_most("messages that the broker dropped", dropped.count(), 0)
            dropped.close()
        found.processes(fog)
    found.figures |= {
        "slow_node": slowed,
        "seconds": round(seconds, 1),
        "kv_chunks_sent": sent,
        "kv_chunks_received": received,
    }
    found.answers(findings(load.outcomes, hanging))
    found.at_most("KV chunks sent and not received", abs(sent - received), 0)
    return found


def _whole_prompts(prompt_tokens: int, answer_tokens: int) -> FogConfig:
    """Return a fog in which nothing that was kept of a prompt stands for another."""
    config = default_fog(prompt_tokens=str(prompt_tokens), answer_tokens=str(answer_tokens))
    return replace(config, gateway={"prefix_cache": "false"})


def _memory_limits(fog: LiveFog, plan: Plan) -> dict[str, int]:
    """Return weights and most KV of each device with a stage, in bytes."""
    config = parse_config(json.loads((DEMO_MODEL / "config.json").read_text("utf-8")))
    kv: dict[str, int] = {}
    for replica in plan["replicas"]:
        for stage in replica["stages"]:
            num_layers = stage["layers"][1] - stage["layers"][0]
            entry = kv_bytes_per_token(config, plan["kv_format"], num_layers)
            device = stage["device"]
            kv[device] = kv.get(device, 0) + replica["kv_tokens"] * entry
    weights = {device["id"]: device["loaded_bytes"] for device in fog.client.devices()}
    return {device: weights[device] + kv_bytes for device, kv_bytes in sorted(kv.items())}


def _chunks(fog: LiveFog) -> tuple[int, int]:
    """Return the KV chunks that all devices together sent, and received."""
    said: list[dict[str, Any]] = [device["telemetry"] or {} for device in fog.client.devices()]
    sent, received = (
        sum(each.get(name) or 0 for each in said)
        for name in ("kv_chunks_sent", "kv_chunks_received")
    )
    return sent, received
