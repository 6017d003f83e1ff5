"""Which retained messages Home Assistant is to find, and what to publish so that it does. Pure.

Every gateway that shows a fog publishes the same messages of fog and devices, so that they may
take turns in any way: retained values replace each other. What was published is remembered until
it is taken back, by an empty message; so are messages of an earlier run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from broker.topics import PREFIX, QoS
from broker.transport import Publication
from gateway.home.entities import Value
from gateway.home.things import Thing

STATE_SECONDS: Final = 5.0
"""Shortest time between two states of a thing of which only measured values have changed."""
REPEAT_SECONDS: Final = 30.0
"""A state is said again after so long, well before it would expire."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What was published last: what counts as a change of it, and when."""

    payload: bytes
    steady: Mapping[str, Value] | None = None
    at: float = 0.0


class Announcements:
    """The retained messages of one gateway.

    Args:
        remembered: Topics that an earlier run has left.

    Attributes:
        topics: All that may be retained.
    """

    def __init__(self, remembered: Iterable[str] = ()) -> None:
        self._left = set(remembered)
        self._said: dict[str, _Said] = {}
        self._cleared: set[str] = set()
        self._is_due_again = False

    @property
    def topics(self) -> frozenset[str]:
        """Where something of ours may be retained."""
        return frozenset(self._left | self._said.keys())

    def again(self) -> None:
        """Say everything once more: the broker, or Home Assistant, has started anew."""
        self._is_due_again = True

    def heard(self, topic: str, payload: bytes) -> None:
        """Take in what is retained on a topic of ours, also what this gateway said itself.

        An empty message is another gateway's, that shows nothing any more.
        """
        if not payload:
            self._said.pop(topic, None)
        elif topic not in self._said:
            self._left.add(topic)

    def look(self, shown: Sequence[Thing], now: float, *, knows_all: bool) -> list[Publication]:
        """Return what to publish now.

        Args:
            shown: All things that there are.
            now: Steady seconds.
            knows_all: Whether what an earlier run has left, and is not among them, is gone; not
                so while devices have not been heard of yet.
        """
        if self._is_due_again:
            self._is_due_again = False
            self._left |= self._said.keys() | self._cleared
            self._said, self._cleared = {}, set()
        due: list[Publication] = []
        for thing in shown:
            due += self._news(thing, now)
        wanted = {topic for thing in shown for topic in (thing.discovery_topic, thing.state_topic)}
        self._left -= wanted
        self._cleared -= wanted
        gone = self._said.keys() - wanted
        if knows_all:
            gone |= self._left
        for topic in gone:
            self._said.pop(topic, None)
        self._left -= gone
        self._cleared |= gone
        # Discovery first, so that nobody shows a state that is empty.
        in_order = sorted(gone, key=lambda topic: (topic.startswith(f"{PREFIX}/"), topic))
        return due + [_retained(topic, b"") for topic in in_order]

    def _news(self, thing: Thing, now: float) -> Iterable[Publication]:
        said = self._said.get(thing.discovery_topic)
        if said is None or said.payload != thing.discovery:
            self._said[thing.discovery_topic] = _Said(thing.discovery)
            yield _retained(thing.discovery_topic, thing.discovery)
        said = self._said.get(thing.state_topic)
        payload = msgspec.json.encode(thing.state)
        if said is not None and said.steady == thing.steady:
            is_new = payload != said.payload and now >= said.at + STATE_SECONDS
            if not is_new and now < said.at + REPEAT_SECONDS:
                return
        self._said[thing.state_topic] = _Said(payload, thing.steady, now)
        yield _retained(thing.state_topic, payload)


def _retained(topic: str, payload: bytes) -> Publication:
    return Publication(topic, payload, QoS.AT_LEAST_ONCE, retained=True)
