"""Fogs, models and devices for the planner's tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from broker.control import (
    DecodeTime,
    DeviceProfile,
    DeviceState,
    DeviceStatus,
    LayerTimes,
    Link,
    ModelManifest,
    PrefillTime,
)
from broker.plan import LayerRange, Loaded, LoadState, Plan, PlanState, Replica, Role, Stage
from planner.model import DeviceSpec, ModelSpec
from planner.performance import Performance

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAST_LINK = Link(latency_seconds=0.0005, bytes_per_second=1e8)


def manifest(revision: str = "rev-1", name: str = "demo", **formats: Any) -> ModelManifest:
    return ModelManifest(name=name, revision=revision, config=CONFIG, tensors={}, **formats)


def layer_times(seconds: float, row_share: float = 0.15) -> LayerTimes:
    """Times of a block whose decode step of one row takes ``seconds``."""
    return LayerTimes(
        prefill=[PrefillTime(n, seconds * n * 0.3) for n in (32, 128, 512)],
        decode=[
            DecodeTime(
                batch, context, seconds * (1 + row_share * (batch - 1)) * (1 + context / 4e3)
            )
            for batch in (1, 4, 16)
            for context in (64, 1024)
        ],
    )


def device(
    name: str, seconds: float, memory_bytes: int, kinds: Sequence[str] = ("full",), **changes: Any
) -> DeviceSpec:
    values: dict[str, Any] = {
        "id": name,
        "memory_bytes": memory_bytes,
        "blocks": {kind: layer_times(seconds * (1 + i)) for i, kind in enumerate(kinds)},
        "embedding": layer_times(seconds * 0.05),
        "head": layer_times(seconds * 0.5),
        "link": FAST_LINK,
    }
    return DeviceSpec(**{**values, **changes})


def model(num_layers: int = 8, kinds: Sequence[str] = ("full",), **changes: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "name": "m",
        "revision": "r",
        "weights": "float32",
        "kv_format": "float32",
        "block_kinds": tuple(kinds[i % len(kinds)] for i in range(num_layers)),
        "block_bytes": (1_000_000,) * num_layers,
        "kv_bytes": (1024,) * num_layers,
        "embedding_bytes": 500_000,
        "head_bytes": 500_000,
        "activation_bytes": 768,
        "context_limit": 1024,
    }
    return ModelSpec(**{**values, **changes})


def performance(prefill: float = 1.0, decode: float = 1.0, **changes: Any) -> Performance:
    """What a replica of one device with all layers promises, prompts and answers per second."""
    values: dict[str, Any] = {
        "devices": (0,),
        "counts": (8,),
        "prefill_rate": prefill,
        "decode_rate": decode,
        "slots": 4,
        "keeps_min_tps": True,
        "kv_tokens": 1024,
        "ttft_seconds": 1.0,
        "tpot_seconds": 0.1,
    }
    return Performance(**{**values, **changes})


def random_fog(
    seed: int, num_devices: int, num_layers: int = 8, low: float = 0.3, high: float = 0.8
) -> tuple[list[DeviceSpec], ModelSpec]:
    """Return devices of unequal speed that offer ``low`` to ``high`` of the model's memory."""
    rng = random.Random(seed)
    spec = model(num_layers, shared_bytes=rng.choice((0, 500_000)))
    whole = spec.stage_bytes(0, num_layers, 1024)
    devices = [
        device(
            f"d{i}",
            0.001 * rng.uniform(1, 8),
            int(whole * rng.uniform(low, high)),
            link=Link(
                latency_seconds=rng.uniform(0.0002, 0.004),
                bytes_per_second=rng.choice((2e6, 1e7, 1e8)),
            ),
        )
        for i in range(num_devices)
    ]
    return devices, spec


def status(session: int = 1, state: DeviceState = DeviceState.READY) -> DeviceStatus:
    return DeviceStatus(state=state, session=session)


def profile(
    seconds: float = 0.001,
    memory_bytes: int = 1_100_000,
    revision: str = "rev-1",
    session: int = 1,
    link: Link = FAST_LINK,
    **changes: Any,
) -> DeviceProfile:
    return DeviceProfile(
        session=session,
        model_revision=revision,
        weights="float32",
        threads=1,
        memory_bytes=memory_bytes,
        blocks={"full": layer_times(seconds)},
        embedding=layer_times(seconds * 0.05),
        head=layer_times(seconds * 0.5),
        link=link,
        chunk_tokens=128,
        **changes,
    )


def loaded(version: int, stages: Sequence[str], session: int = 1, **changes: Any) -> Loaded:
    values: dict[str, Any] = {
        "session": session,
        "version": version,
        "state": LoadState.LOADED,
        "revision": "rev-1",
        "stages": list(stages),
    }
    return Loaded(**{**values, **changes})


def replica(name: str, stages: Sequence[tuple[str, int, int]]) -> Replica:
    """A replica of devices, each with its first layer and the one after its last."""
    num_layers = stages[-1][2]
    return Replica(
        id=name,
        role=Role.BOTH,
        slots=1,
        prefill_slots=2,
        kv_tokens=512,
        stages=[
            Stage(
                device=device,
                layers=LayerRange(start, end),
                embedding=start == 0,
                head=end == num_layers,
                predicted_seconds=0.1,
            )
            for device, start, end in stages
        ],
    )


def plan_of(*replicas: Replica, **changes: Any) -> Plan:
    """An active plan of some replicas for `model`."""
    values: dict[str, Any] = {
        "version": 1,
        "state": PlanState.ACTIVE,
        "model": "m",
        "revision": "r",
        "weights": "float32",
        "kv_format": "float32",
        "chunk_tokens": 128,
        "context_tokens": 256,
        "replicas": list(replicas),
    }
    return Plan(**{**values, **changes})
