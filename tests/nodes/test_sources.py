"""Who is asked for the next range."""

import threading

import pytest

from nodes.sources import MANNERS, Kind, Source, SourceBook

A = Source("neighbour a", Kind.NEIGHBOUR, "http://a")
B = Source("neighbour b", Kind.NEIGHBOUR, "http://b")
GATEWAY = Source("gateway", Kind.GATEWAY, "http://gateway")
HUB = Source("hub", Kind.HUB, "http://hub")
ALL = (HUB, GATEWAY, A, B)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> SourceBook:
    return SourceBook(clock)


class StillBusyError(Exception):
    """Stands for a wait that would go on."""


def give_up() -> None:
    raise StillBusyError


def test_the_nearest_kind_is_asked_first(book: SourceBook) -> None:
    assert book.lease((HUB, GATEWAY)) is GATEWAY
    assert book.lease((HUB, GATEWAY, A)) is A
    assert book.lease(()) is None


def test_one_range_at_a_time_is_read_from_a_neighbour(book: SourceBook) -> None:
    assert [book.lease(ALL), book.lease(ALL)] == [A, B]
    # Both are busy: that is waited for, not taken from farther away.
    with pytest.raises(StillBusyError):
        book.lease(ALL, give_up)
    book.release(B)
    assert book.lease(ALL) is B


def test_several_ranges_are_read_from_a_gateway(book: SourceBook) -> None:
    for _ in range(MANNERS[Kind.GATEWAY].places):
        assert book.lease((GATEWAY, HUB)) is GATEWAY
    with pytest.raises(StillBusyError):
        book.lease((GATEWAY, HUB), give_up)


def test_who_waits_goes_on_when_a_place_is_free(book: SourceBook) -> None:
    book.lease((A,))
    found: list[Source | None] = []
    waiting = threading.Thread(target=lambda: found.append(book.lease((A,))))
    waiting.start()
    book.release(A)
    waiting.join(10)
    assert found == [A]


def test_who_failed_is_left_for_a_while_and_longer_each_time(
    book: SourceBook, clock: Clock
) -> None:
    for rest in (30, 60, 120):
        book.distrust(A)
        # Ranges that break off together are one failure.
        book.distrust(A)
        clock.now += rest - 1
        assert lease_once(book, (A, GATEWAY)) is GATEWAY
        clock.now += 1
        assert lease_once(book, (A, GATEWAY)) is A


def test_who_gave_what_it_should_starts_afresh(book: SourceBook, clock: Clock) -> None:
    for _ in range(5):
        book.distrust(A)
        clock.now += 1000
    book.trust(A)
    book.distrust(A)
    clock.now += 30
    assert book.lease((A, GATEWAY)) is A


def test_who_rests_is_asked_when_nobody_else_is_left(book: SourceBook) -> None:
    for source in (A, GATEWAY):
        book.distrust(source)
    assert book.lease((GATEWAY, HUB, A)) is HUB
    assert book.lease((GATEWAY, A)) is A


def lease_once(book: SourceBook, sources: tuple[Source, ...]) -> Source | None:
    source = book.lease(sources)
    assert source is not None
    book.release(source)
    return source
