"""The paper's plans and result tables, from `published.toml`. Pure but for the file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from broker.plan import Role
from planner.model import Workload

_FILE: Final = Path(__file__).with_name("published.toml")


class PaperWorkload(StrEnum):
    """The two variants of the paper's data set."""

    EXTENDED = "extended"
    CUSTOM = "custom"


class Policy(StrEnum):
    """The two methods that the paper compares."""

    E2LLM = "e2llm"
    ADAPTED_SPLITWISE = "adapted-splitwise"


class PublishedStage(NamedTuple):
    """Blocks on a device, and how many of their FFNs are in host memory."""

    device: str
    num_blocks: int
    offloads: int


@dataclass(frozen=True, slots=True)
class PublishedReplica:
    """A row of Tables III to VI.

    Attributes:
        slots: N_Req; 0 for prefill, where none is printed.
        stages: The master first.
    """

    role: Role
    slots: int
    stages: tuple[PublishedStage, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """The replica's devices, the master first."""
        return tuple(stage.device for stage in self.stages)


@dataclass(frozen=True, slots=True)
class PublishedPlan:
    """One of Tables III to VI."""

    workload: PaperWorkload
    policy: Policy
    replicas: tuple[PublishedReplica, ...]

    @property
    def decoder_slots(self) -> int:
        """Requests decoded at once in the whole fog."""
        return sum(replica.slots for replica in self.replicas)


class Summary(NamedTuple):
    """A row of Tables VII and VIII."""

    mean: float
    deviation: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """A cell of Tables VII and VIII.

    Attributes:
        period_seconds: Between two arrivals.
        prefill: Prompt tokens per second of a request's prefill.
        decode: Tokens per second of a request while it decodes.
        waiting: Seconds, KV transfer included.
    """

    workload: PaperWorkload
    period_seconds: float
    policy: Policy
    prefill: Summary
    decode: Summary
    waiting: Summary


@dataclass(frozen=True, slots=True)
class Published:
    """All that the paper prints about its experiment.

    Attributes:
        workloads: What plans are made for.
        num_requests: Of each run.
    """

    workloads: dict[PaperWorkload, Workload]
    periods_seconds: tuple[float, ...]
    num_requests: int
    plans: tuple[PublishedPlan, ...]
    results: tuple[PublishedResult, ...]

    def plan(self, workload: PaperWorkload, policy: Policy) -> PublishedPlan:
        """Return the plan of a workload and policy."""
        return next(p for p in self.plans if (p.workload, p.policy) == (workload, policy))

    def result(
        self, workload: PaperWorkload, period_seconds: float, policy: Policy
    ) -> PublishedResult:
        """Return a cell; `StopIteration` is a bug of the caller."""
        key = (workload, period_seconds, policy)
        return next(r for r in self.results if (r.workload, r.period_seconds, r.policy) == key)

    def waiting_reduction(self, workload: PaperWorkload, period_seconds: float) -> float:
        """Return the share of adapted Splitwise's mean waiting time that E2LLM saves."""
        ours = self.result(workload, period_seconds, Policy.E2LLM).waiting.mean
        theirs = self.result(workload, period_seconds, Policy.ADAPTED_SPLITWISE).waiting.mean
        return 1 - ours / theirs


@cache
def load_published() -> Published:
    """Read the file; it ships with the package, so an error in it is a bug."""
    document = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    setup = document["setup"]
    return Published(
        workloads={
            PaperWorkload(name): Workload(
                prompt_tokens=means["prompt_tokens"],
                answer_tokens=means["answer_tokens"],
                context_tokens=means["prompt_tokens"] + means["answer_tokens"],
                min_tps=setup["min_tps"],
            )
            for name, means in document["workloads"].items()
        },
        periods_seconds=tuple(setup["periods_seconds"]),
        num_requests=setup["requests_per_run"],
        plans=tuple(_plan(entry) for entry in document["plans"]),
        results=tuple(_result(entry) for entry in document["results"]),
    )


def _plan(entry: dict[str, Any]) -> PublishedPlan:
    replicas = (
        PublishedReplica(
            role=Role(replica["role"]),
            slots=replica["slots"],
            stages=tuple(PublishedStage(*stage) for stage in replica["stages"]),
        )
        for replica in entry["replicas"]
    )
    return PublishedPlan(PaperWorkload(entry["workload"]), Policy(entry["policy"]), tuple(replicas))


def _result(entry: dict[str, Any]) -> PublishedResult:
    return PublishedResult(
        workload=PaperWorkload(entry["workload"]),
        period_seconds=entry["period_seconds"],
        policy=Policy(entry["policy"]),
        prefill=Summary(*entry["prefill"]),
        decode=Summary(*entry["decode"]),
        waiting=Summary(*entry["waiting"]),
    )
