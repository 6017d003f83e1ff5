"""Settings of the planner, read once from the environment by `planner.__main__`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from broker.address import listening_address
from broker.logs import LogFormat
from planner.lengths import parse_buckets
from planner.live.conditions import Limits
from planner.live.levels import Rule
from planner.model import Objective, Roles, Workload


@dataclass(frozen=True, kw_only=True)
class PlannerSettings:
    """All that a person may set; variables are ``E2LLM_PLANNER_<FIELD>`` and the common ones.

    Attributes:
        broker: ``mqtt://user:password@host:port``.
        redis: ``redis://:password@host:port/0``; without it telemetry and the last version
            live in memory only, and a second planner is kept quiet by the bus alone.
        state: Folder of the file that a health check looks at; None: no file.
        metrics: Address to tell Prometheus metrics at, as ``127.0.0.1:9107``. None: nowhere.
        model: Name of the model to plan for, when gateways publish several.
        expect_devices: The first plan waits for so many devices, within ``wait_seconds``.
        wait_seconds: Longest wait for one more device or profile before the first plan.
        settle_seconds: Quiet time after a device joined, so that several join together.
        look_seconds: Time between two looks at telemetry.
        speed_threshold: A device whose times are off by more than this share of what was
            planned for long enough starts planning.
        speed_seconds: How long is enough when it is off by far (a factor of three or more);
            what is off less counts later (`planner.live.levels`).
        core_seconds: The same for a device that waits for cores which others use.
        follow_lengths: Whether plans follow the lengths of prompts and answers that gateways
            measure, where no ``buckets`` are set.
        battery_limit: A device with less charge, and not on mains power, is left out.
        heat_limit_celsius: A device that is hotter is left out ...
        rest_seconds: ... for at least so long.
        min_gain: Predicted gain in requests per second that repays a move of weights, after
            the time that devices load within ``horizon_seconds``.
        prompt_tokens: Mean prompt that is planned for.
        answer_tokens: Mean answer that is planned for.
        buckets: How lengths are distributed, instead of the two means: shares, prompts and
            answers, as ``0.7:128+64, 0.3:2000+300``.
        context_tokens: Longest prompt plus answer; the model's own limit when that is less.
        min_tps: Tokens per second that every stream gets at least.
        chunk_tokens: Prefill chunk grid; less when a chunk would be too large a message.
        max_slots: Most requests that a replica decodes at once.
        roles: ``separate``, ``auto`` or ``mixed``. Also with ``separate`` replicas do both
            where only one is possible, or separate roles would be slower than one device.
        kv_transfer: Whether plans count that KV caches move between replicas.
        ttft_seconds: Target for the time to the first token; with a target, plans are chosen
            by the requests per second that meet it.
        tpot_seconds: Target for the time between two tokens.
        horizon_seconds: How long a plan is expected to serve; loading counts against it.
        energy_weight: Share of its requests per second that a plan may lose for every joule
            per token that it saves. Devices must say their power.
        never_behind: Whether a plan answers as soon as the best device alone (decision 0013).
            Off: most requests per second, however long slow devices take.
        exact_devices: Up to so many devices plans are certified by enumeration.
        seed: Of the genetic algorithm.
        telemetry_seconds: Telemetry older than this is silence.
        lease_seconds: A planner that is silent for so long loses its lease.
        drain_seconds: Old replicas are kept so long after a new plan is active.
        leave_seconds: Longest wait for the end of requests to a model that is given up.
        load_seconds: A device that says nothing for so long while loading has failed.
        retry_seconds: A device that failed is left out for so long, then twice that ...
    """

    broker: str
    redis: str | None = None
    site: str = "local"
    log: str = "INFO"
    log_format: LogFormat = LogFormat.TEXT
    state: Path | None = None
    metrics: str | None = None
    model: str | None = None
    expect_devices: int = 0
    wait_seconds: float = 60.0
    settle_seconds: float = 1.0
    look_seconds: float = 2.0
    speed_threshold: float = 0.25
    speed_seconds: float = 4.0
    core_seconds: float = 60.0
    follow_lengths: bool = True
    battery_limit: float = 0.15
    heat_limit_celsius: float = 95.0
    rest_seconds: float = 300.0
    min_gain: float = 0.10
    prompt_tokens: int = 128
    answer_tokens: int = 128
    buckets: str | None = None
    context_tokens: int = 2048
    min_tps: float = 7.0
    chunk_tokens: int = 128
    max_slots: int = 16
    roles: Roles = Roles.SEPARATE
    kv_transfer: bool = True
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    horizon_seconds: float = 3600.0
    energy_weight: float = 0.0
    never_behind: bool = True
    exact_devices: int = 8
    seed: int = 0
    telemetry_seconds: float = 30.0
    lease_seconds: float = 10.0
    drain_seconds: float = 5.0
    leave_seconds: float = 300.0
    load_seconds: float = 300.0
    retry_seconds: float = 30.0

    def __post_init__(self) -> None:
        positive = ("look_seconds", "telemetry_seconds", "lease_seconds", "load_seconds")
        for name in (*positive, "retry_seconds", "speed_seconds", "core_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0")
        not_negative = ("wait_seconds", "settle_seconds", "drain_seconds", "min_gain")
        for name in (*not_negative, "leave_seconds", "battery_limit", "rest_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative")
        if not 0 < self.speed_threshold < 1:
            raise ValueError("speed_threshold must be between 0 and 1, as 0.25")
        if self.metrics is not None:
            listening_address(self.metrics, "metrics")
        if self.expect_devices < 0:
            raise ValueError("expect_devices must be at least 0")
        # Both check their own values.
        _ = self.workload, self.objective

    @property
    def workload(self) -> Workload:
        """The workload that is planned for."""
        return Workload(
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            context_tokens=self.context_tokens,
            min_tps=self.min_tps,
            chunk_tokens=self.chunk_tokens,
            buckets=parse_buckets(self.buckets) if self.buckets else (),
        )

    @property
    def limits(self) -> Limits:
        """From when on a device has changed, or is left alone."""
        return Limits(
            speed=Rule(threshold=self.speed_threshold, seconds=self.speed_seconds),
            cores=Rule(threshold=self.speed_threshold, seconds=self.core_seconds),
            battery=self.battery_limit,
            heat_celsius=self.heat_limit_celsius,
            rest_seconds=self.rest_seconds,
        )

    @property
    def objective(self) -> Objective:
        """What makes a plan good."""
        return Objective(
            roles=self.roles,
            max_slots=self.max_slots,
            counts_kv=self.kv_transfer,
            ttft_seconds=self.ttft_seconds,
            tpot_seconds=self.tpot_seconds,
            horizon_seconds=self.horizon_seconds,
            energy_weight=self.energy_weight,
            rival_load=Objective().rival_load if self.never_behind else None,
            exact_devices=self.exact_devices,
        )
