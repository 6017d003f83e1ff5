"""What a replica promises, as plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

from broker.plan import Role
from planner.owner import ROLES


class Energy(NamedTuple):
    """What a replica's devices draw.

    Attributes:
        idle_watts: Of all its devices, whatever they do.
        prompt_joules: On top of that, for a prompt.
        token_joules: On top of that, for a token of a full decode step.
    """

    idle_watts: float
    prompt_joules: float
    token_joules: float


@dataclass(frozen=True, slots=True)
class Performance:
    """What a split promises.

    Attributes:
        devices: Device indexes in stage order.
        counts: Layers of each stage.
        prefill_rate: Prompt tokens per second with the pipeline full (PS in the paper).
        decode_rate: Tokens per second of all slots together (DS).
        slots: Requests decoded at once: as many as give the most tokens per second, keep
            ``min_tps``, and keep the TPOT target if one request does; at least 1.
        keeps_min_tps: Whether even one request at a time gets ``min_tps``.
        kv_tokens: KV positions that every stage can hold.
        ttft_seconds: Prefill of one prompt on the idle replica, mean over the buckets.
        tpot_seconds: Time between two tokens of a lone request.
        offloads: Layers of each stage with their feed-forward part in host memory.
        send_seconds: What the busiest link out of its devices works for one prompt when the
            KV cache leaves for another replica; the prompt's own hidden states included.
        receive_seconds: What the busiest link into its devices works for one request when
            the KV cache comes from another replica; hidden states of decode included.
        in_time: For each of `Workload.prompt_shares` whether a lone prompt keeps the TTFT
            target; empty without a target.
        keeps_tpot: Whether its slots keep the TPOT target.
        energy: None where a device's power is not known.
    """

    devices: tuple[int, ...]
    counts: tuple[int, ...]
    prefill_rate: float
    decode_rate: float
    slots: int
    keeps_min_tps: bool
    kv_tokens: int
    ttft_seconds: float
    tpot_seconds: float
    offloads: tuple[int, ...] = ()
    send_seconds: float = 0.0
    receive_seconds: float = 0.0
    in_time: tuple[bool, ...] = ()
    keeps_tpot: bool = True
    energy: Energy | None = None

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """Devices, layers and layers in host memory: equal for equal stages."""
        return self.devices, self.counts, self.offloads

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Half-open layer range of each stage."""
        ends = list(accumulate(self.counts))
        return list(zip([0, *ends[:-1]], ends, strict=True))


class Most(NamedTuple):
    """What a group of devices does as one replica at most, whatever its split.

    Attributes:
        prefill_rate: Prompt tokens per second, at most.
        decode_rate: Tokens per second, at most, in steps no longer than ``min_tps`` and the
            TPOT target allow where any split keeps them.
        ttft_seconds: Of a lone prompt, at least; mean over the buckets.
        tpot_seconds: Between two tokens of a lone request, at least.
    """

    prefill_rate: float
    decode_rate: float
    ttft_seconds: float
    tpot_seconds: float


@dataclass(frozen=True, slots=True)
class Options:
    """The best splits of one group, one for each role.

    Attributes:
        roles: Which of them the owners of its devices allow.
    """

    prefill: Performance
    decode: Performance
    both: Performance
    roles: tuple[Role, ...] = ROLES

    def exchanged(self, others: Mapping[int, int]) -> Options:
        """Return the same of other devices that are equal to these."""

        def of(found: Performance) -> Performance:
            return replace(found, devices=tuple([others[d] for d in found.devices]))

        return Options(of(self.prefill), of(self.decode), of(self.both), self.roles)


@dataclass(frozen=True, slots=True)
class Member:
    """One replica of a solution."""

    role: Role
    performance: Performance
