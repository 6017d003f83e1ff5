"""Whom a node waits for to hand a tensor on, and for how long."""

from collections.abc import Callable

import pytest

from broker.control import TensorOffer
from nodes.awaited import wait_for_offer
from nodes.neighbours import Neighbours
from planner.live.settings import PlannerSettings

REVISION = "r"
MIB = 1 << 20


class Wait:
    """A node that waits for ``kitchen``; what happens meanwhile comes from a script.

    Attributes:
        seconds: That it has waited so far.
    """

    def __init__(self, *ranges: tuple[int, int], is_heard: bool = True) -> None:
        self.neighbours = Neighbours("hall")
        self.seconds = 0.0
        self.is_here = False
        if is_heard:
            self.announce(*ranges)

    def announce(self, *ranges: tuple[int, int], device: str = "kitchen") -> None:
        offer = TensorOffer(session=1, url="http://it", tensors={REVISION: list(ranges)})
        self.neighbours.hear(device, offer)

    def run(self, then: Callable[[], None] = lambda: None, num_bytes: int = MIB) -> float:
        """Wait; ``then`` happens once, after about ten seconds. Return the seconds it took."""
        pending = [then]

        def pause(seconds: float) -> None:
            self.seconds += seconds
            if self.seconds >= 10 and pending:
                pending.pop()()

        wait_for_offer(
            self.neighbours,
            "kitchen",
            REVISION,
            num_bytes,
            is_here=lambda: self.is_here,
            pause=pause,
            clock=lambda: self.seconds,
        )
        return self.seconds


def test_who_has_said_what_it_has_or_hands_nothing_on_is_not_waited_for() -> None:
    assert Wait((2, 5)).run() == 0
    assert Wait(is_heard=False).run() == 0


def test_who_reads_is_waited_for_until_it_says_what_it_has() -> None:
    wait = Wait()
    assert wait.run(lambda: wait.announce((4, 5))) == pytest.approx(10, abs=0.1)


def test_who_takes_its_offer_back_is_left() -> None:
    wait = Wait()
    assert wait.run(lambda: wait.neighbours.hear("kitchen", None)) == pytest.approx(10, abs=0.1)


def test_what_another_device_announces_ends_nothing() -> None:
    wait = Wait()
    assert wait.run(lambda: wait.announce((4, 5), device="attic")) > 20


def test_a_tensor_that_came_in_another_way_is_not_waited_for() -> None:
    wait = Wait()

    def arrive() -> None:
        wait.is_here = True

    assert wait.run(arrive) == pytest.approx(10, abs=0.1)


def test_patience_grows_with_the_tensor_and_ends() -> None:
    small, large, huge = (Wait().run(num_bytes=size) for size in (0, 100 * MIB, 1 << 40))
    assert 30 < small < large < huge
    # Before the planner takes the device for a failed one.
    assert huge < PlannerSettings.load_seconds - 60
