"""What our objective adds to the paper's, for one fog. Pure.

The paper compares seconds per request of the slower phase (`planner.flow`). Here are

- **KV transfer**: the links of a prefill replica carry each prompt's KV cache out, those of a
  decode replica in, beside hidden states. That limits the requests per second of each; what
  is left of a transfer when prefill ends stands between a request's first two tokens.
- **Targets**: goodput, the requests per second that meet a TTFT and a TPOT target.
- **Moves**: seconds in which devices load what they do not hold, within a horizon; and changes
  for which memory does not hold the old layers beside the new ones.
- **Energy**: joules per token of an answer.

Every one of them makes a plan worse or leaves it as it is: goodput is at most the rate, and
penalties are factors of at least 1. So a bound on requests per second stays one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from math import ceil, inf
from typing import Final, NamedTuple

from broker.plan import Role
from planner.cost import DeviceCost
from planner.flow import NO_LIMIT, Flow, Limit
from planner.model import ModelSpec, Objective, Workload
from planner.moves import Holdings
from planner.performance import Member, Performance
from planner.transfer import KvTransfer, kv_transfer

FREE_LOADING: Final = 1e-3
"""Share of the horizon that may be spent on loading for nothing: seconds in an hour. Else it would
decide between plans that serve as much, before how soon they answer."""
ROLLING_SECONDS: Final = 180.0
"""Loading that is as bad as a change in which replicas go before new ones are loaded: their answers
pause, by a second where it was measured."""
MAX_ROLLING: Final = 0.05
"""What such a plan must serve more, at most: less than predictions are off by."""
_LEAST: Final = 1e-12


class KvTimes(NamedTuple):
    """Mean over requests; one that is decoded where it was prefilled moves nothing.

    Attributes:
        seconds: Of a transfer that has the links to itself.
        exposed_seconds: What is left of it when prefill ends.
    """

    seconds: float
    exposed_seconds: float


class Terms:
    """The terms for one fog; what is known of replicas is remembered.

    Args:
        costs: The fog's devices, which replicas name by index.
        model: What is served.
        workload: Fitted to the model.
        objective: Which terms count.
        holdings: What devices hold of the running plan; None without one.
    """

    def __init__(
        self,
        costs: Sequence[DeviceCost],
        model: ModelSpec,
        workload: Workload,
        objective: Objective,
        holdings: Holdings | None = None,
    ) -> None:
        self._costs = costs
        self._model = model
        self._workload = workload
        self._objective = objective
        self._holdings = holdings if objective.horizon_seconds else None
        self._has_ways = any(cost.peers for cost in costs)
        self._transfers: dict[object, KvTransfer] = {}
        self._loads: dict[object, float] = {}
        self._fits: dict[object, bool] = {}
        shares = workload.prompt_shares
        self._offered = [share for _, share in shares]
        self._work = _relative_work(costs, len(shares))

    @property
    def counts_kv(self) -> bool:
        """Whether links limit the requests whose KV caches they carry."""
        return self._objective.counts_kv

    def objective_seconds(self, members: Sequence[Member], flow: Flow) -> float:
        """Return seconds per request that counts, with the penalties of moves and energy."""
        seconds = 1 / max(self.good_rate(members, flow), _LEAST)
        if self._holdings is not None:
            horizon = self._objective.horizon_seconds
            share = max(self.load_seconds(members) / horizon - FREE_LOADING, 0.0)
            if not all(self._is_beside(member.performance) for member in members):
                share += min(ROLLING_SECONDS / horizon, MAX_ROLLING)
            seconds *= 1 + share
        if self._objective.energy_weight:
            joules = self.joules_per_token(members, flow)
            seconds *= 1 + self._objective.energy_weight * (inf if joules is None else joules)
        return seconds

    # --- targets ----------------------------------------------------------------------------

    def good_rate(self, members: Sequence[Member], flow: Flow) -> float:
        """Return goodput: requests per second within both targets, at the plan's full rate.

        A prediction without queues, as follows. A prompt is in time on a replica that
        prefills a lone prompt of its bucket within the TTFT target; an answer is fast
        enough where the replica's slots keep the TPOT target. All buckets come in their
        shares. Those with the fewest replicas to be in time on are served first, on the
        replicas that suit the fewest buckets; a bucket's work is its prefill time relative
        to the mean prompt's, the same on all devices. Of requests that met one target any
        may meet the other, since late binding pairs them. The prompts that a replica with
        the role `both` works on between two tokens are left out.
        """
        good = flow.rate
        if self._objective.tpot_seconds is not None:
            fast = (
                a for a, m in zip(flow.answers, members, strict=True) if m.performance.keeps_tpot
            )
            good = min(good, sum(fast))
        if self._objective.ttft_seconds is not None:
            good = min(good, self._in_time_rate(members, flow))
        return good

    def _in_time_rate(self, members: Sequence[Member], flow: Flow) -> float:
        left = [prompts for prompts in flow.prompts if prompts > 0]
        suits = [
            member.performance.in_time
            for member, prompts in zip(members, flow.prompts, strict=True)
            if prompts > 0
        ]
        order = sorted(range(len(left)), key=lambda r: sum(suits[r]))
        rate, good = flow.rate, 0.0
        for b in sorted(
            range(len(self._offered)), key=lambda b: (sum(suit[b] for suit in suits), -b)
        ):
            wanted = rate * self._offered[b] * self._work[b]
            for r in order:
                if suits[r][b] and wanted > 0:
                    taken = min(left[r], wanted)
                    left[r] -= taken
                    wanted -= taken
                    good += taken / self._work[b]
        return good

    # --- KV transfer ------------------------------------------------------------------------

    def limits(self, members: Sequence[Member]) -> Sequence[Limit]:
        """Return [R], requests per second whose KV caches each replica can send and receive."""
        if not self._objective.counts_kv:
            return [NO_LIMIT] * len(members)
        if self._has_ways:
            return [
                Limit(self._limit_by_pair(members, r, True), self._limit_by_pair(members, r, False))
                for r in range(len(members))
            ]
        return [
            Limit(
                1 / max(member.performance.send_seconds, _LEAST),
                1 / max(member.performance.receive_seconds, _LEAST),
            )
            for member in members
        ]

    def _limit_by_pair(self, members: Sequence[Member], r: int, sends: bool) -> float:
        """Return one limit where devices have direct ways: which links work, pairs decide.

        The others take part in proportion to their rates; hidden states are left out.
        """
        member, away = members[r], Role.PREFILL if sends else Role.DECODE
        busy: defaultdict[tuple[str, ...], float] = defaultdict(float)
        total = 0.0
        for o, other in enumerate(members):
            if o == r or other.role is away:
                continue
            found = other.performance
            rate = found.decode_rate if sends else found.prefill_rate
            pair = (member.performance, found) if sends else (found, member.performance)
            total += rate
            for link, seconds in self._transfer(*pair).busy.items():
                busy[link] += seconds * rate
        return total / max([_LEAST, *busy.values()])

    def kv_times(self, members: Sequence[Member], flow: Flow) -> KvTimes:
        """Return what moving KV caches takes; zeros where it does not count.

        What a replica prefills beyond what it decodes is sent, in proportion to what each
        of the others decodes beyond what it prefills.
        """
        if not self._objective.counts_kv:
            return KvTimes(0.0, 0.0)
        more, moved = _moving(flow)
        seconds = exposed = 0.0
        for sender, sent in zip(members, more, strict=True):
            for receiver, taken in zip(members, more, strict=True):
                if sent > 0 > taken:
                    transfer = self._transfer(sender.performance, receiver.performance)
                    weight = -sent * taken / moved
                    seconds += weight * transfer.seconds
                    exposed += weight * self._exposed_seconds(sender, transfer)
        return KvTimes(seconds, exposed)

    def exposed_seconds(self, members: Sequence[Member], flow: Flow) -> list[float]:
        """Return [R], what is left of KV transfers as `kv_times` has it, by the replica.

        A lone request that a replica with the role `both` prefills can stay there. So a
        replica that only prefills has to do with all that it sends, and one that only decodes
        with what it takes from those that do both.
        """
        found = [0.0] * len(members)
        if not self._objective.counts_kv:
            return found
        more, moved = _moving(flow)
        for s, r in product(range(len(members)), repeat=2):
            sender, receiver = members[s], members[r]
            if not more[s] > 0 > more[r]:
                continue
            transfer = self._transfer(sender.performance, receiver.performance)
            exposed = self._exposed_seconds(sender, transfer)
            if sender.role is Role.PREFILL:
                found[s] -= more[r] / moved * exposed
            elif receiver.role is Role.DECODE:
                found[r] += more[s] / moved * exposed
        return found

    def _exposed_seconds(self, sender: Member, transfer: KvTransfer) -> float:
        chunks = ceil(self._workload.prompt_tokens / self._workload.chunk_tokens)
        return transfer.exposed_seconds(sender.performance.ttft_seconds, chunks)

    def _transfer(self, sender: Performance, receiver: Performance) -> KvTransfer:
        key = (sender.stages, receiver.stages)
        found = self._transfers.get(key)
        if found is None:
            found = self._transfers[key] = kv_transfer(
                self._costs,
                self._model.sent_kv_bytes,
                self._workload.prompt_tokens,
                sender,
                receiver,
            )
        return found

    # --- moves and energy -------------------------------------------------------------------

    def load_seconds(self, members: Sequence[Member]) -> float:
        """Return how long devices load what they lack, all at once, each over its link."""
        return max((self.replica_load_seconds(m.performance) for m in members), default=0.0)

    def replica_load_seconds(self, performance: Performance) -> float:
        """As `load_seconds`, for one replica; 0 without a running plan."""
        if self._holdings is None:
            return 0.0
        found = self._loads.get(performance.stages)
        if found is None:
            found = 0.0
            for device, (start, end) in zip(performance.devices, performance.ranges, strict=True):
                cost = self._costs[device]
                missing = self._holdings.missing_bytes(cost.id, start, end)
                found = max(found, missing / cost.bytes_per_second)
            self._loads[performance.stages] = found
        return found

    def _is_beside(self, performance: Performance) -> bool:
        """Return whether memory holds a replica beside what its devices have, or it is there."""
        if self._holdings is None:
            return True
        found = self._fits.get(performance.stages)
        if found is None:
            stages = [
                (self._costs[device], start, end)
                for device, (start, end) in zip(
                    performance.devices, performance.ranges, strict=True
                )
            ]
            names = frozenset((cost.id, start) for cost, start, _ in stages)
            found = self._fits[performance.stages] = names in self._holdings.replicas or all(
                self._holdings.bytes_beside(cost.id, start, end) <= cost.memory_bytes
                for cost, start, end in stages
            )
        return found

    def joules_per_token(self, members: Sequence[Member], flow: Flow) -> float | None:
        """Return energy per token of an answer at the full rate; None if a power is unknown.

        Devices in use draw their idle power all the time, and more while they compute.
        Devices that the plan leaves idle are not counted: they may be off.
        """
        rate, tokens = max(flow.rate, _LEAST), self._workload.answer_tokens
        joules = 0.0
        for member, prompts, answers in zip(members, *flow.shares(), strict=True):
            energy = member.performance.energy
            if energy is None:
                return None
            joules += energy.idle_watts / rate
            joules += prompts * energy.prompt_joules + answers * tokens * energy.token_joules
        return joules / tokens


def _moving(flow: Flow) -> tuple[list[float], float]:
    """Return [R], the part of all requests that each sends, or takes below 0; and their sum."""
    prompts, answers = flow.shares()
    more = [p - a for p, a in zip(prompts, answers, strict=True)]
    return more, sum(excess for excess in more if excess > 0)


def _relative_work(costs: Sequence[DeviceCost], num_lengths: int) -> list[float]:
    """Return each length's prefill time over the mean prompt's, mean over the devices."""
    totals = [0.0] * num_lengths
    for cost in costs:
        mean = max(sum(cost.prefill.layers), _LEAST)
        for index, prompt in enumerate(cost.prompts):
            totals[index] += max(sum(prompt.layers), _LEAST) / mean / len(costs)
    return totals
