"""Which processes make a local fog, and with which settings each is started. Pure.

The settings travel in the environment (`broker.settings`); a process sees its own
credential and nobody else's.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker.address import BrokerAddress
from fog.config import GATEWAY_ID, DeviceConfig, FogConfig
from fog.ports import LOOPBACK
from fog.probes import http_probe, redis_probe, tcp_probe
from fog.processes import ProcessSpec
from fog.state import StateFolder

PACKAGE_ROOT: Final = Path(__file__).parent.parent

# One thread per node that sleeps while it waits: several OpenMP pools that spin on the
# same cores slow each other down by large factors. Two malloc arenas instead of eight
# per core keep the six nodes small.
NODE_ENVIRON: Final = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "MALLOC_ARENA_MAX": "2",
    # Matrices of less than 2 MiB in huge pages as well.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

# The gateway and the planner go first, then nodes say goodbye through the broker.
STOP_RANKS: Final = {"gateway": 0, "planner": 0, "redis": 2, "broker": 2}
NODE_STOP_RANK: Final = 1

WIRES: Final = "wires"
"""Process of a fog that may be harmed: relays between its devices and the broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """All that the children of one fog have to be told.

    Attributes:
        model: Folder or hub id of the model to serve.
        model_name: Name for requests; None: the gateway's default.
        weights: Weight format; None: what ``config`` says, or the gateway's default.
        passwords: Broker user to password; device ids, ``planner`` and the gateway's id.
        redis_argv: Command that starts the Redis server.
        base_environ: The environment of `up` itself.
        wires: Ports of the relays between devices and the broker, by device; empty: none.
        home: Prefix of Home Assistant's discovery, for the broker's rules; None: no rights.
        admin_key: With which `up` itself asks a gateway that has API keys; None: it has none.
    """

    config: FogConfig
    state: StateFolder
    model: str
    model_name: str | None
    gateway_port: int
    broker_port: int
    redis_port: int
    redis_password: str
    redis_argv: tuple[str, ...]
    passwords: Mapping[str, str]
    base_environ: Mapping[str, str]
    weights: str | None = None
    wires: Mapping[str, int] = field(default_factory=dict)
    home: str | None = None
    admin_key: str | None = None


def build_specs(plan: ServicePlan) -> list[ProcessSpec]:
    """Return what to start.

    Nothing waits for anything: importing torch takes a node longer than broker and Redis
    need to start, and everybody tries again until they answer.
    """
    return [
        ProcessSpec(
            name="broker",
            argv=python_command(
                "broker",
                "--state",
                str(plan.state.broker),
                "--port",
                str(plan.broker_port),
                "--site",
                plan.config.site,
                *(("--home-assistant", plan.home) if plan.home is not None else ()),
            ),
            environ=_environ(plan, {}),
            probe=tcp_probe(LOOPBACK, plan.broker_port),
            stop_rank=STOP_RANKS["broker"],
        ),
        ProcessSpec(
            name="redis",
            argv=plan.redis_argv,
            environ=_environ(plan, {}),
            probe=redis_probe(LOOPBACK, plan.redis_port, plan.redis_password),
            stop_rank=STOP_RANKS["redis"],
        ),
        *([_wires(plan)] if plan.wires else []),
        *(_node(plan, device) for device in plan.config.devices),
        _gateway(plan),
        _planner(plan),
    ]


def _wires(plan: ServicePlan) -> ProcessSpec:
    wires = [f"--wire={device}={port}" for device, port in plan.wires.items()]
    conditions = str(plan.state.conditions)
    broker = f"{LOOPBACK}:{plan.broker_port}"
    return ProcessSpec(
        name=WIRES,
        argv=python_command(
            "fog.chaos.wires", "--broker", broker, "--conditions", conditions, *wires
        ),
        environ=_environ(plan, {}),
        probe=tcp_probe(LOOPBACK, next(iter(plan.wires.values()))),
        stop_rank=STOP_RANKS["broker"],
    )


def _gateway(plan: ServicePlan) -> ProcessSpec:
    settings = {
        "E2LLM_GATEWAY_ID": GATEWAY_ID,
        "E2LLM_GATEWAY_PORT": str(plan.gateway_port),
        "E2LLM_GATEWAY_MODEL": plan.model,
        "E2LLM_GATEWAY_STATE": str(plan.state.gateway),
        "E2LLM_GATEWAY_JOINS": str(plan.state.joins),
        "E2LLM_REDIS": _redis_url(plan),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if plan.model_name is not None:
        settings["E2LLM_GATEWAY_MODEL_NAME"] = plan.model_name
    settings |= _extra("GATEWAY", plan)
    if plan.admin_key is not None:
        settings["E2LLM_GATEWAY_ADMIN_KEY"] = plan.admin_key
    if plan.weights is not None:
        settings["E2LLM_GATEWAY_WEIGHTS"] = plan.weights
    return ProcessSpec(
        name="gateway",
        argv=python_command("gateway"),
        environ=_environ(plan, _bus(plan, GATEWAY_ID) | settings),
        probe=http_probe(LOOPBACK, plan.gateway_port, "/healthz"),
        stop_rank=STOP_RANKS["gateway"],
    )


def _planner(plan: ServicePlan) -> ProcessSpec:
    settings = {
        # Without it the planner would plan with the first devices that are measured, and
        # again with each further one.
        "E2LLM_PLANNER_EXPECT_DEVICES": str(len(plan.config.devices)),
        "E2LLM_REDIS": _redis_url(plan),
    }
    return ProcessSpec(
        name="planner",
        argv=python_command("planner"),
        environ=_environ(plan, _bus(plan, "planner") | settings | _extra("PLANNER", plan)),
        stop_rank=STOP_RANKS["planner"],
    )


def _node(plan: ServicePlan, device: DeviceConfig) -> ProcessSpec:
    settings = {
        "E2LLM_NODE_ID": device.id,
        "E2LLM_NODE_MEMORY": str(device.model_memory),
        "E2LLM_NODE_SLOWDOWN": f"{device.slowdown:g}",
        "E2LLM_NODE_THREADS": "1",
        "E2LLM_NODE_STATE": str(plan.state.device(device.id)),
        "E2LLM_NODE_CACHE": str(plan.state.cache),
    }
    if plan.wires:
        settings["E2LLM_NODE_CONDITIONS"] = str(plan.state.conditions)
    if device.link_delay_seconds is not None:
        settings["E2LLM_NODE_LINK_DELAY_SECONDS"] = repr(device.link_delay_seconds)
    if device.link_bytes_per_second is not None:
        settings["E2LLM_NODE_LINK_BYTES_PER_SECOND"] = repr(device.link_bytes_per_second)
    settings |= device.owner.environment
    return ProcessSpec(
        name=device.id,
        argv=python_command("nodes"),
        environ=_environ(plan, _bus(plan, device.id) | settings | NODE_ENVIRON),
        stop_rank=NODE_STOP_RANK,
    )


def _bus(plan: ServicePlan, user: str) -> dict[str, str]:
    port = plan.wires.get(user, plan.broker_port)
    address = BrokerAddress(LOOPBACK, port, user, plan.passwords[user])
    return {"E2LLM_BROKER": address.url, "E2LLM_SITE": plan.config.site}


def _redis_url(plan: ServicePlan) -> str:
    return f"redis://:{plan.redis_password}@{LOOPBACK}:{plan.redis_port}/0"


def _extra(process: str, plan: ServicePlan) -> dict[str, str]:
    table = plan.config.planner if process == "PLANNER" else plan.config.gateway
    return {f"E2LLM_{process}_{key.upper()}": value for key, value in table.items()}


def _environ(plan: ServicePlan, settings: Mapping[str, str]) -> dict[str, str]:
    """Return a child's environment: that of `up` without settings meant for other processes."""
    inherited = {
        key: value
        for key, value in plan.base_environ.items()
        if not key.startswith("E2LLM_") or key in {"E2LLM_LOG", "E2LLM_LOG_FORMAT"}
    }
    return {**child_environ(inherited), "PYTHONUNBUFFERED": "1", **settings}


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a child finds our packages also when not installed."""
    path = python_path(environ.get("PYTHONPATH", ""), PACKAGE_ROOT)
    return {**environ, **({"PYTHONPATH": path} if path else {})}


def python_path(inherited: str, root: Path) -> str:
    """Return a PYTHONPATH under which our packages are found also when not installed."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    parts: Sequence[str] = [part for part in inherited.split(":") if part]
    return ":".join(parts if str(root) in {*installed, *parts} else [str(root), *parts])


def python_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module of ours with this interpreter."""
    # -P: the folder in which a person types `e2llm up` may have a folder named `nodes`.
    return (sys.executable, "-P", "-m", module, *arguments)
