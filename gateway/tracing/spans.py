"""The spans of one request, from its timeline. Pure; docs/traces.md says what each one is.

Phases follow each other without a gap, so they add up to the request by construction. Where one
begins is what the gateway saw; how it is divided among stages is what their own clocks measured.
Clocks are never compared: only lengths of times go over the bus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from broker.events import Spell, StageTimes
from broker.plan import Replica
from gateway.tracing.timeline import Attempt, Timeline

Value = str | int | float


@dataclass(frozen=True, slots=True)
class Span:
    """A time with a name; in the gateway's steady seconds."""

    name: str
    began_at: float
    ended_at: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    children: tuple[Span, ...] = ()
    is_lost: bool = False

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.ended_at - self.began_at


def phases_of(timeline: Timeline) -> tuple[Span, ...]:
    """Return the phases of a request that has ended, each with its stages."""
    first = timeline.attempts[0]
    phases = [Span("prepare", timeline.began_at, first.queued_at)]
    for attempt in timeline.attempts:
        phases += _phases(attempt)
    return tuple(phases)


def _phases(attempt: Attempt) -> list[Span]:
    assert attempt.ended_at is not None, "the request has ended"
    if attempt.opened_at is None or attempt.prefill is None or attempt.decode is None:
        return [Span("queue", attempt.queued_at, attempt.ended_at)]
    token_at = _first_token_at(attempt, attempt.prefill, attempt.decode)
    phases = [
        Span("queue", attempt.queued_at, attempt.opened_at, {"e2llm.attempt": attempt.number}),
        _prefill(attempt, attempt.prefill, attempt.opened_at, token_at),
    ]
    if attempt.ended_at > token_at:
        phases += _answer(attempt, attempt.decode, token_at, attempt.ended_at)
    if attempt.is_lost:
        phases[-1] = replace(phases[-1], is_lost=True)
    return phases


def _first_token_at(attempt: Attempt, prefill: Replica, decode: Replica) -> float:
    """Return when prefill ended: where the first token came here, or a little before.

    Decode may begin while that token is still on its way here. What its stages took beyond the
    time since then is taken from prefill's last hop, so that they fit in.
    """
    assert attempt.opened_at is not None, "only what was opened has phases"
    assert attempt.ended_at is not None, "the request has ended"
    if attempt.token_at is None:
        return attempt.ended_at
    told, master = _told(attempt, decode), attempt.told.get((decode.id, 0))
    spent = sum(times.decode.seconds for times in told)
    if master is not None:
        spent += master.handover_seconds + master.waiting_seconds
    prefilled = sum(times.prefill.seconds for times in _told(attempt, prefill))
    earliest = attempt.opened_at + prefilled
    return min(attempt.token_at, max(attempt.ended_at - spent, earliest))


def _prefill(attempt: Attempt, replica: Replica, began: float, ended: float) -> Span:
    """Return prefill, along the way of the prompt's last chunk: stage by stage, hop by hop."""
    told = _told(attempt, replica)
    left = _left(ended - began, [each.prefill for each in told])
    name = "hop" if len(told) == len(replica.stages) else "unknown"
    share = left / (len(told) + 1)
    at, children = began, []
    for times in told:
        children.append(_share(name, at, share, len(told) + 1))
        at += share
        children.append(_stage("prefill stage", at, times, times.prefill, replica))
        at += times.prefill.seconds
    children.append(_share(name, at, share, len(told) + 1))
    attributes: dict[str, Value] = {
        "e2llm.replica": replica.id,
        "e2llm.cached_tokens": attempt.cached_tokens,
    }
    return Span("prefill", began, ended, attributes, _long(children))


def _answer(attempt: Attempt, replica: Replica, began: float, ended: float) -> list[Span]:
    """Return what comes after the first token: the rest of the KV transfer, a wait, decode."""
    master = attempt.told.get((replica.id, 0))
    phases = []
    at = began
    if attempt.prefill is not None and attempt.prefill.id != replica.id:
        length = 0.0 if master is None else min(master.handover_seconds, ended - at)
        phases.append(_kv_transfer(attempt, replica, at, at + length))
        at += length
    if master is not None and master.waiting_seconds:
        length = min(master.waiting_seconds, ended - at)
        phases.append(Span("wait", at, at + length, {"e2llm.replica": replica.id}))
        at += length
    return [*phases, _decode(attempt, replica, at, ended)]


def _kv_transfer(attempt: Attempt, replica: Replica, began: float, ended: float) -> Span:
    """Return the part of the transfer that prefill did not hide; its streams began before."""
    streams = []
    for times in _told(attempt, replica):
        if times.kv is not None:
            attributes = {**_place(times, replica), "e2llm.kv.bytes": times.kv.num_bytes}
            streams.append(Span("kv stream", ended - times.kv.seconds, ended, attributes))
    return Span("kv_transfer", began, ended, {"e2llm.replica": replica.id}, tuple(streams))


def _decode(attempt: Attempt, replica: Replica, began: float, ended: float) -> Span:
    """Return decode: what each stage took in all steps, one after the other, then the hops."""
    told = _told(attempt, replica)
    at, children = began, []
    for times in told:
        children.append(_stage("decode stage", at, times, times.decode, replica))
        at += times.decode.seconds
    num_steps = max((times.decode.count for times in told), default=0)
    name = "hops" if len(told) == len(replica.stages) else "unknown"
    left = _left(ended - began, [times.decode for times in told])
    children.append(_share(name, at, left, num_steps * len(replica.stages)))
    attributes: dict[str, Value] = {"e2llm.replica": replica.id, "e2llm.steps": num_steps}
    return Span("decode", began, ended, attributes, _long(children))


def _told(attempt: Attempt, replica: Replica) -> list[StageTimes]:
    """Return what stages of a replica told, in their order."""
    indices = range(len(replica.stages))
    return [attempt.told[replica.id, i] for i in indices if (replica.id, i) in attempt.told]


def _left(seconds: float, spells: Sequence[Spell]) -> float:
    """Return what stages do not account for: hops. Less than nothing would be noise."""
    return max(seconds - sum(spell.seconds for spell in spells), 0.0)


def _share(name: str, at: float, seconds: float, num_hops: int) -> Span:
    return Span(name, at, at + seconds, {"e2llm.hops": num_hops})


def _stage(name: str, at: float, times: StageTimes, spell: Spell, replica: Replica) -> Span:
    attributes = {
        **_place(times, replica),
        "e2llm.computing_seconds": spell.computing_seconds,
        "e2llm.chunks" if name == "prefill stage" else "e2llm.steps": spell.count,
    }
    return Span(name, at, at + spell.seconds, attributes)


def _place(times: StageTimes, replica: Replica) -> dict[str, Value]:
    stage = replica.stages[times.stage]
    return {
        "e2llm.device": stage.device,
        "e2llm.stage": times.stage,
        "e2llm.layers": f"{stage.layers.start}-{stage.layers.end - 1}",
    }


def _long(spans: Sequence[Span]) -> tuple[Span, ...]:
    return tuple(span for span in spans if span.ended_at > span.began_at)
