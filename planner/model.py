"""What the planner plans with: frozen values in SI units. Nothing here does I/O.

The planner's mathematics knows devices, a model, a workload and an objective by these
values only; `planner.live.inputs` makes them from the messages on the bus.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from broker.control import LayerTimes, Link
from planner.owner import FREE, Owner


class InfeasiblePlanError(Exception):
    """No plan exists. The message says what is missing, by how much, and the remedy.

    Attributes:
        missing_bytes: Memory that the fog lacks in total; 0 when the total would do and
            only its distribution does not.
    """

    def __init__(self, message: str, missing_bytes: int = 0) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """A device as measured.

    Attributes:
        memory_bytes: Memory offered to weights and KV cache.
        blocks: Kind of block to its measured times.
        embedding: Times of the embedding look-up.
        head: Times of final norm, head and sampling.
        link: One-way latency and rate to the broker.
        speed: Speed now relative to the measured times; 0.5 doubles every time.
        host_memory_bytes: Host memory for feed-forward weights that ``memory_bytes`` has no
            room for; 0 where memory is unified, and for devices that cannot compute there.
        offloaded: Kind of block to its times with the feed-forward part in host memory.
        peers: Device id to the direct way there; to all others it leads over the broker.
        idle_watts: Power while it waits for work; None where nobody knows.
        busy_watts: Power while it computes; known when ``idle_watts`` is.
        owner: What its owner allows.
        hop_overhead_seconds: What a hop takes beside the links of its two devices, half of it
            here: reading, queueing and writing messages.
    """

    id: str
    memory_bytes: int
    blocks: Mapping[str, LayerTimes]
    embedding: LayerTimes
    head: LayerTimes
    link: Link
    speed: float = 1.0
    host_memory_bytes: int = 0
    offloaded: Mapping[str, LayerTimes] = field(default_factory=dict)
    peers: Mapping[str, Link] = field(default_factory=dict)
    idle_watts: float | None = None
    busy_watts: float | None = None
    owner: Owner = FREE
    hop_overhead_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "host_memory_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"device {self.id}: {name} must not be negative")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError(f"device {self.id}: speed must be a number greater than 0")
        if not self.blocks:
            raise ValueError(f"device {self.id}: no block was measured")
        idle, busy = self.idle_watts, self.busy_watts
        if (idle is None) != (busy is None) or (
            idle is not None and busy is not None and not 0 <= idle <= busy < math.inf
        ):
            raise ValueError(f"device {self.id}: power needs 0 <= idle_watts <= busy_watts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model in numbers.

    Attributes:
        block_kinds: [L], the profile entry that times each block.
        block_bytes: [L], weights of each block.
        kv_bytes: [L], KV cache of one position in each block.
        embedding_bytes: Weights of the embedding, at the first stage.
        head_bytes: Weights of final norm and head, at the last stage.
        shared_bytes: What a stage with both ends holds only once (tied weights).
        activation_bytes: One position's hidden states between two stages.
        context_limit: Most positions that the model is made for.
        ffn_bytes: [L], the part of each block's weights that may lie in host memory; empty
            where nothing may.
        kv_transfer: How KV travels between replicas.
        packed_kv_bytes: [L], one position's KV in each block on that way; empty where it
            travels as it is held.
    """

    name: str
    revision: str
    weights: str
    kv_format: str
    block_kinds: tuple[str, ...]
    block_bytes: tuple[int, ...]
    kv_bytes: tuple[int, ...]
    embedding_bytes: int
    head_bytes: int
    activation_bytes: int
    context_limit: int
    shared_bytes: int = 0
    ffn_bytes: tuple[int, ...] = ()
    kv_transfer: str = "exact"
    packed_kv_bytes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        num_layers = len(self.block_kinds)
        if not num_layers or {len(self.block_bytes), len(self.kv_bytes)} != {num_layers}:
            raise ValueError(f"model {self.name}: kinds and bytes must name every block")
        if min(*self.block_bytes, *self.kv_bytes, self.embedding_bytes, self.head_bytes) < 0:
            raise ValueError(f"model {self.name}: bytes must not be negative")
        if self.ffn_bytes and (
            len(self.ffn_bytes) != num_layers
            or any(
                not 0 <= part <= whole
                for part, whole in zip(self.ffn_bytes, self.block_bytes, strict=True)
            )
        ):
            raise ValueError(f"model {self.name}: ffn_bytes must be a part of every block")
        if self.packed_kv_bytes and len(self.packed_kv_bytes) != num_layers:
            raise ValueError(f"model {self.name}: packed_kv_bytes must name every block")

    @property
    def sent_kv_bytes(self) -> tuple[int, ...]:
        """[L], what moving one position's KV in each block to another replica sends."""
        return self.packed_kv_bytes or self.kv_bytes

    @property
    def num_layers(self) -> int:
        """Blocks of the model."""
        return len(self.block_kinds)

    @property
    def weight_bytes(self) -> int:
        """Weights of the whole model on one device."""
        ends = self.embedding_bytes + self.head_bytes - self.shared_bytes
        return sum(self.block_bytes) + ends

    def stage_bytes(self, start: int, end: int, kv_tokens: int = 0) -> int:
        """Return weights, and KV of ``kv_tokens`` positions, of layers ``[start, end)``."""
        total = sum(self.block_bytes[start:end]) + kv_tokens * sum(self.kv_bytes[start:end])
        total += self.embedding_bytes if start == 0 else 0
        total += self.head_bytes if end == self.num_layers else 0
        if start == 0 and end == self.num_layers:
            total -= self.shared_bytes
        return total

    def held_bytes(self, ranges: Sequence[tuple[int, int]], kv_tokens: int) -> int:
        """Return what a device holds of layers ``[start, end)`` that stand beside each other.

        Weights lie there once; KV, of ``kv_tokens`` positions, for each range.
        """
        layers = {layer for start, end in ranges for layer in range(start, end)}
        total = sum(self.block_bytes[layer] for layer in layers)
        embedding = any(start == 0 for start, _ in ranges)
        head = any(end == self.num_layers for _, end in ranges)
        total += self.embedding_bytes if embedding else 0
        total += self.head_bytes if head else 0
        total -= self.shared_bytes if embedding and head else 0
        return total + sum(kv_tokens * sum(self.kv_bytes[start:end]) for start, end in ranges)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of about the same lengths.

    Attributes:
        share: Of all requests.
    """

    share: float
    prompt_tokens: int
    answer_tokens: int

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"a bucket's share is over 0 and at most 1, not {self.share:g}")
        if min(self.prompt_tokens, self.answer_tokens) < 1:
            raise ValueError("a bucket's prompts and answers have at least one token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests that are planned for.

    Attributes:
        prompt_tokens: Mean length of a prompt (N_P in the paper), rounded; that of the
            buckets where there are any.
        answer_tokens: Mean length of an answer (N_D in the paper), likewise.
        context_tokens: Longest prompt plus answer that a request may have.
        min_tps: Tokens per second that each request gets at least. The paper names 7 as
            the speed of a reader and plans with 15.
        chunk_tokens: Grid on which prompts are cut into chunks.
        buckets: How lengths are distributed; shares add up to 1. Empty: all requests have
            the mean lengths, as the paper plans. `planner.lengths` makes buckets.
    """

    prompt_tokens: int = 128
    answer_tokens: int = 128
    context_tokens: int = 2048
    min_tps: float = 7.0
    chunk_tokens: int = 128
    buckets: tuple[Bucket, ...] = ()

    def __post_init__(self) -> None:
        if self.buckets:
            if not math.isclose(sum(b.share for b in self.buckets), 1.0, rel_tol=1e-6):
                raise ValueError("the shares of all buckets must add up to 1")
            prompt = sum(b.share * b.prompt_tokens for b in self.buckets)
            answer = sum(b.share * b.answer_tokens for b in self.buckets)
            object.__setattr__(self, "prompt_tokens", round(prompt))
            object.__setattr__(self, "answer_tokens", round(answer))
        if min(self.prompt_tokens, self.answer_tokens, self.chunk_tokens) < 1:
            raise ValueError("prompt, answer and chunk have at least one token")
        if self.context_tokens < 2:
            raise ValueError("the context has room for at least a prompt token and an answer token")
        if not (math.isfinite(self.min_tps) and self.min_tps > 0):
            raise ValueError("min_tps must be a number greater than 0")

    @property
    def distribution(self) -> tuple[Bucket, ...]:
        """The buckets; without any, one of the means."""
        return self.buckets or (Bucket(1.0, self.prompt_tokens, self.answer_tokens),)

    @property
    def prompt_shares(self) -> tuple[tuple[int, float], ...]:
        """Different lengths of prompts, rising, and the share of requests with each."""
        shares: dict[int, float] = {}
        for bucket in self.distribution:
            shares[bucket.prompt_tokens] = shares.get(bucket.prompt_tokens, 0.0) + bucket.share
        return tuple(sorted(shares.items()))

    @property
    def step_shares(self) -> tuple[tuple[Bucket, float], ...]:
        """The buckets, each with its share of all decode steps.

        A long answer is decoded more often than a short one, so this is also the share of
        slots that a bucket's requests hold at any time.
        """
        total = sum(b.share * b.answer_tokens for b in self.distribution)
        return tuple((b, b.share * b.answer_tokens / total) for b in self.distribution)

    @property
    def step_context(self) -> int:
        """Positions that a decode step sees, mean over all steps."""
        return round(sum(s * (b.prompt_tokens + b.answer_tokens // 2) for b, s in self.step_shares))

    def fitted_to(self, context_limit: int) -> Workload:
        """Return the workload within a context: lengths are cut so that a request fits."""
        context = min(self.context_tokens, context_limit)

        def fitted(prompt: int, answer: int) -> tuple[int, int]:
            answer = min(answer, max(context // 2, 1))
            return min(prompt, max(context - answer, 1)), answer

        prompt, answer = fitted(self.prompt_tokens, self.answer_tokens)
        return replace(
            self,
            prompt_tokens=prompt,
            answer_tokens=answer,
            context_tokens=context,
            buckets=tuple(
                Bucket(b.share, *fitted(b.prompt_tokens, b.answer_tokens)) for b in self.buckets
            ),
        )


class Roles(StrEnum):
    """Which roles a plan may use."""

    SEPARATE = "separate"
    """`both` only where a single replica is possible. The default: a prompt's chunks then
    never stand between two tokens of a running answer."""
    AUTO = "auto"
    """As separate, unless `both` replicas serve more than twice the requests."""
    MIXED = "mixed"
    """Whatever serves most requests; our addition to the paper, with `both` anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What makes one plan better than another, and how hard to look.

    The base is the paper's: the slower phase, ``max(N_P/sum PS, N_D/sum DS)`` seconds per
    request. `planner.roles.Score` lists what is compared, in which order, and
    `planner.terms` says what each of the following adds to it. With ``counts_kv=False``, no
    rival, no targets, no price of energy and no buckets the objective is the paper's.

    Attributes:
        roles: Which roles may be used.
        max_slots: Most requests that a replica decodes at once (16 in the paper).
        counts_kv: Whether moving KV caches takes links and time (in the paper it does not).
        ttft_seconds: Target for the time to the first token; None: any will do.
        tpot_seconds: Target for the time between two tokens; None: ``min_tps`` alone. With
            a target, plans are compared by the requests per second that meet it (goodput).
        horizon_seconds: How long a plan is expected to serve. Loading what the running plan
            has not loaded counts as time in which nothing is served. 0: moves are free.
        rival_load: Where one device holds the model, a plan serves at least as many requests
            as the best such device, and answers as soon at this share of what that device
            serves (`planner.rival`); None: however long answers take.
        energy_weight: Share of its requests per second that a plan may lose for every joule
            per token that it saves; 0: energy does not count.
        population: Individuals of the genetic algorithm.
        generations: Its generations.
        elites: Best ever seen, crossed with the population of each generation.
        exact_devices: Up to this many devices exact enumeration certifies or corrects the
            genetic algorithm.
        local_search: Whether devices move and change places after the genetic algorithm
            while that helps.
    """

    roles: Roles = Roles.SEPARATE
    max_slots: int = 16
    counts_kv: bool = True
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    horizon_seconds: float = 3600.0
    rival_load: float | None = 0.3
    energy_weight: float = 0.0
    population: int = 64
    generations: int = 100
    elites: int = 8
    exact_devices: int = 8
    local_search: bool = True

    def __post_init__(self) -> None:
        if self.max_slots < 1:
            raise ValueError("max_slots must be at least 1")
        if self.exact_devices < 0:
            raise ValueError("exact_devices must not be negative")
        for name in ("ttft_seconds", "tpot_seconds"):
            target = getattr(self, name)
            if target is not None and not (math.isfinite(target) and target > 0):
                raise ValueError(f"{name} must be a number greater than 0")
        for name in ("horizon_seconds", "energy_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a number that is not negative")
        if self.rival_load is not None and not 0 <= self.rival_load < 1:
            raise ValueError("rival_load must be a share from 0 to less than 1")
        if self.population < 4 or self.generations < 1 or not 0 < self.elites <= self.population:
            raise ValueError(
                "the genetic algorithm needs population >= 4, generations >= 1, elites"
            )

    @property
    def has_targets(self) -> bool:
        """Whether plans are compared by the requests that meet targets."""
        return self.ttft_seconds is not None or self.tpot_seconds is not None
