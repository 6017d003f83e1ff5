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


# --- rates ----------------------------------------------------------------------------------


def measure(book: SourceBook, source: Source, megabytes_per_second: float) -> None:
    book.measure(source, 16 << 20, (16 << 20) / (megabytes_per_second * 1e6))


def test_a_slow_neighbour_gives_way_to_a_gateway_that_is_much_faster(book: SourceBook) -> None:
    measure(book, A, 1.0)
    # Nobody knows yet whether the gateway is: that is worth a range.
    assert lease_once(book, (GATEWAY, A)) is GATEWAY
    measure(book, GATEWAY, 1.9)
    assert lease_once(book, (GATEWAY, A)) is A
    measure(book, GATEWAY, 2.1)
    assert lease_once(book, (GATEWAY, A)) is GATEWAY


def test_a_neighbour_as_fast_as_a_lan_is_asked_without_trying_others(book: SourceBook) -> None:
    measure(book, A, 30.0)
    assert lease_once(book, (HUB, GATEWAY, A)) is A


def test_of_several_neighbours_a_much_slower_one_is_left_out(book: SourceBook) -> None:
    measure(book, A, 12.0)
    measure(book, B, 100.0)
    assert lease_once(book, (A, B)) is B
    measure(book, A, 60.0)
    assert lease_once(book, (A, B)) is A


def test_a_rate_is_measured_again_after_a_minute(book: SourceBook, clock: Clock) -> None:
    measure(book, A, 1.0)
    measure(book, GATEWAY, 50.0)
    assert lease_once(book, (GATEWAY, A)) is GATEWAY
    clock.now += 60
    assert lease_once(book, (GATEWAY, A)) is A


def test_ranges_that_are_read_at_once_share_one_link(book: SourceBook) -> None:
    measure(book, A, 20.0)
    for _ in range(4):
        assert book.lease((GATEWAY,)) is GATEWAY
    measure(book, GATEWAY, 11.0)
    assert lease_once(book, (A, HUB)) is A
    for _ in range(4):
        book.release(GATEWAY)
    assert lease_once(book, (A, GATEWAY)) is GATEWAY


def test_a_few_bytes_say_nothing_of_a_rate(book: SourceBook) -> None:
    book.measure(A, 4096, 1.0)
    assert lease_once(book, (GATEWAY, A)) is A


def test_a_small_range_that_had_to_wait_a_little_says_nothing_of_a_rate(book: SourceBook) -> None:
    book.measure(A, 1 << 20, 0.4)
    assert lease_once(book, (GATEWAY, A)) is A
    book.measure(A, 1 << 20, 0.6)
    assert lease_once(book, (GATEWAY, A)) is GATEWAY


def test_a_slow_source_is_asked_when_the_fast_one_rests(book: SourceBook) -> None:
    measure(book, A, 1.0)
    measure(book, GATEWAY, 50.0)
    book.distrust(GATEWAY)
    assert lease_once(book, (GATEWAY, A)) is A
