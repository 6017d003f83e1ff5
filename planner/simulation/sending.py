"""When and in which parts a prompt's KV leaves for its decode replica."""

from __future__ import annotations

from collections.abc import Callable

from planner.simulation.attempts import Attempt, Step
from planner.simulation.ledger import Ledger
from planner.simulation.network import Links, Transfer, kv_shares
from planner.simulation.scenario import KvTransfer, Scenario


class Sender:
    """Turns a prompt's KV into flows: one part while prefill runs, the rest after it.

    The part that is left for the end is one piece (see `KvTransfer`), which did not exist
    before. So the exposed time is ``max(0, transfer - remaining prefill)`` plus that piece
    and the network's residue.
    """

    def __init__(self, scenario: Scenario, links: Links[Attempt]) -> None:
        self._network = scenario.network
        self._kv_bytes = scenario.kv_bytes_per_token
        self._num_layers = scenario.num_layers
        self._links = links
        self._shares: dict[tuple[str, str], list[tuple[str, str, float]]] = {}
        self._ways: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        # Asked again and again for the first of the queue.
        self._estimates: dict[tuple[str, str, int], float] = {}

    def begins_with(self, step: Step, attempt: Attempt) -> bool:
        """Whether a first part can leave at this step."""
        mode = self._network.transfer
        first = Step.STARTED if mode is KvTransfer.BY_LAYER else Step.FIRST_CHUNK
        return (
            step is first
            and attempt.decode is not None
            and attempt.decode is not attempt.prefill
            and self._early_share(attempt.prefill, attempt.prompt_tokens) > 0
        )

    def send(self, now: float, attempt: Attempt) -> Transfer[Attempt]:
        """Send what can leave now: all that prefill has left, or the first part."""
        prefill, decode = attempt.prefill, attempt.decode
        assert prefill is not None
        assert decode is not None
        until = 1.0
        if not attempt.is_prefilled:
            until = self._early_share(prefill, attempt.prompt_tokens)
        num_bytes = (until - attempt.sent_share) * attempt.prompt_tokens * self._kv_bytes
        attempt.sent_share = until
        attempt.is_overlapped = attempt.is_overlapped or not attempt.is_prefilled
        parts = [
            (source, target, share * num_bytes)
            for source, target, share in self._parts(prefill, decode)
        ]
        return self._links.send(now, attempt, parts)

    def residue_seconds(self, attempt: Attempt) -> float:
        """Return what a transfer costs that overlapped prefill, beside its bytes."""
        return self._network.residue_seconds if attempt.is_overlapped else 0.0

    def exposed_seconds(self, prompt_tokens: int) -> Callable[[Ledger, Ledger], float]:
        """Return a router's estimate of the transfer between two replicas, nobody else's."""

        def estimate(prefill: Ledger, decode: Ledger) -> float:
            if prefill is decode or not self._kv_bytes:
                return 0.0
            key = prefill.id, decode.id, prompt_tokens
            found = self._estimates.get(key)
            if found is None:
                found = self._estimates[key] = estimate_anew(prefill, decode)
            return found

        def estimate_anew(prefill: Ledger, decode: Ledger) -> float:
            early = self._early_share(prefill, prompt_tokens)
            num_bytes = prompt_tokens * self._kv_bytes
            whole = max(
                [
                    latency_seconds + share * num_bytes / rate
                    for latency_seconds, share, rate in self._ways_between(prefill, decode)
                ]
            )
            beside = prefill.planned.prompt_seconds(prompt_tokens) if early else 0.0
            return max(whole - beside, (1 - early) * whole)

        return estimate

    def _early_share(self, prefill: Ledger | None, prompt_tokens: int) -> float:
        network = self._network
        if (
            prefill is None
            or network.transfer is KvTransfer.SERIALIZED
            or prompt_tokens < network.serialized_below_tokens
        ):
            return 0.0
        pieces = prefill.planned.num_chunks(prompt_tokens)
        if network.transfer is KvTransfer.BY_LAYER:
            pieces *= self._num_layers
        elif pieces > 1:
            pieces *= len(prefill.replica.stages)
        return 1 - 1 / pieces

    def _ways_between(self, prefill: Ledger, decode: Ledger) -> list[tuple[float, float, float]]:
        """Return latency in seconds, share of the KV and bytes per second of each part."""
        key = prefill.id, decode.id
        found = self._ways.get(key)
        if found is None:
            found = self._ways[key] = [
                (
                    self._links.latency_seconds(source, target),
                    share,
                    self._links.rate(source, target),
                )
                for source, target, share in self._parts(prefill, decode)
            ]
        return found

    def _parts(self, prefill: Ledger, decode: Ledger) -> list[tuple[str, str, float]]:
        found = self._shares.get((prefill.id, decode.id))
        if found is None:
            found = self._shares[prefill.id, decode.id] = kv_shares(prefill.replica, decode.replica)
        return found
