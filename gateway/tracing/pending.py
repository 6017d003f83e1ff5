"""Traced requests of one dispatcher, until the last of their stages has told. Pure."""

from __future__ import annotations

from broker.events import StageTimes
from gateway.tracing.timeline import Timeline


class PendingTraces:
    """Timelines by request id; empty where nothing is traced."""

    def __init__(self) -> None:
        self._timelines: dict[str, Timeline] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no timer runs."""
        return not self._timelines

    def add(self, request_id: str, timeline: Timeline) -> None:
        """A traced request was taken in."""
        self._timelines[request_id] = timeline

    def tell(self, sender: str, times: StageTimes) -> bool:
        """Take in what a stage took; False if nobody wants to know."""
        timeline = self._timelines.get(times.request_id)
        return timeline is not None and timeline.tell(sender, times)

    def take_due(self, now: float) -> list[Timeline]:
        """Return and forget the requests of which all is known that will be."""
        due = [each for each, timeline in self._timelines.items() if timeline.is_due(now)]
        return [self._timelines.pop(each) for each in due]
