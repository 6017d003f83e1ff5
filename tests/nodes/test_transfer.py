"""KV streams: credit is a cumulative offset, coverage decides, nothing hangs."""

import random

import pytest

from broker.plan import LayerRange
from nodes.transfer import ChunkPlace, KvReceiver, KvSender

LAYERS = LayerRange(2, 5)


def sender(*, chunk_bytes: int = 64, credit: int = 10_000, positions: int = 10) -> KvSender:
    return KvSender(LAYERS, (0, 0, 0), positions, 8, chunk_bytes, credit, now=0.0)


def test_chunks_tile_layers_and_positions_without_gap_or_overlap() -> None:
    stream = sender()
    stream.produce(0, 4)
    stream.produce(4, 10)
    places = list(stream.take(0.0))
    cells = [
        (layer, position)
        for place in places
        for layer in range(place.layers.start, place.layers.end)
        for position in range(place.position, place.position + place.num_positions)
    ]
    assert sorted(cells) == [(layer, p) for layer in range(2, 5) for p in range(10)]
    assert [p.offset for p in places[1:]] == [p.offset + p.num_bytes for p in places[:-1]]
    assert places[-1].offset + places[-1].num_bytes == stream.total


def test_what_has_left_a_layers_window_when_decode_begins_is_not_sent() -> None:
    stream = KvSender(LAYERS, (0, 6, 6), 10, 8, 64, 10_000, now=0.0)
    stream.produce(0, 4)
    stream.produce(4, 10)
    cells = {
        (layer, position)
        for place in stream.take(0.0)
        for layer in range(place.layers.start, place.layers.end)
        for position in range(place.position, place.position + place.num_positions)
    }
    assert cells == {(2, p) for p in range(10)} | {
        (layer, p) for layer in (3, 4) for p in range(6, 10)
    }
    assert stream.total == 8 * len(cells)


def test_an_entry_larger_than_the_chunk_size_is_sent_alone() -> None:
    stream = sender(chunk_bytes=4)
    stream.produce(0, 1)
    assert [place.num_bytes for place in stream.take(0.0)] == [8, 8, 8]


def test_nothing_beyond_the_credit_leaves() -> None:
    stream = sender(credit=100)
    stream.produce(0, 10)
    first = list(stream.take(0.0))
    assert first
    assert all(place.offset + place.num_bytes <= 100 for place in first)
    assert list(stream.take(0.0)) == []
    stream.confirm(first[-1].offset + first[-1].num_bytes, 10_000, 0.1)
    list(stream.take(0.1))
    stream.confirm(stream.total, stream.total, 0.2)
    assert stream.is_done


def test_a_late_confirmation_takes_nothing_back() -> None:
    stream = sender()
    stream.produce(0, 10)
    list(stream.take(0.0))
    stream.confirm(120, 500, 0.1)
    stream.confirm(60, 100, 0.2)
    assert stream.received == 120


def test_a_stuck_stream_goes_back_to_the_receivers_offset_and_counts() -> None:
    stream = sender()
    stream.produce(0, 10)
    places = list(stream.take(0.0))
    stream.confirm(places[0].num_bytes, 10_000, 0.1)
    assert not stream.go_back_if_stuck(0.5, patience_seconds=1.0)
    assert stream.go_back_if_stuck(1.2, patience_seconds=1.0)
    assert list(stream.take(1.2)) == places[1:]
    assert stream.repeats == 1


def test_a_stream_that_stays_stuck_is_repeated_less_and_less_often() -> None:
    stream = sender()
    stream.produce(0, 10)
    list(stream.take(0.0))
    times = []
    for second in range(40):
        if stream.go_back_if_stuck(second, patience_seconds=1.0):
            times.append(second)
            list(stream.take(second))
    assert times == [1, 3, 7, 15, 23, 31, 39]


def test_a_stream_whose_credit_is_less_than_a_chunk_sends_one_after_the_other() -> None:
    stream = sender()
    stream.produce(0, 10)
    received = 0
    while not stream.is_done:
        places = list(stream.take(0.0))
        assert places
        received += sum(place.num_bytes for place in places)
        stream.confirm(received, received + 1, 0.0)
    assert received == stream.total


def test_requests_whose_kv_comes_at_once_share_a_window() -> None:
    receiver = KvReceiver(LayerRange(0, 1), (0,), 2, 100)
    place = ChunkPlace(LayerRange(0, 1), 0, 1, 0, 8)
    assert receiver.accept(0, place, 16, num_receiving=4) == (8, 33)


def test_an_idle_stream_is_not_stuck() -> None:
    stream = sender()
    assert not stream.go_back_if_stuck(99.0, patience_seconds=1.0)
    stream.produce(0, 10)
    list(stream.take(100.0))
    assert not stream.go_back_if_stuck(100.5, patience_seconds=1.0)


@pytest.mark.parametrize("seed", range(20))
def test_coverage_completes_under_loss_repetition_and_reordering(seed: int) -> None:
    rng = random.Random(seed)
    streams = {
        0: KvSender(LayerRange(0, 2), (0, 4), 9, 8, 40, 64, 0.0),
        1: KvSender(LayerRange(2, 5), (4, 4, 0), 9, 8, 40, 64, 0.0),
    }
    receiver = KvReceiver(LayerRange(0, 5), (0, 4, 4, 4, 0), 9, window_bytes=64)
    for start in (0, 4, 8):
        for stream in streams.values():
            stream.produce(start, min(start + 4, 9))
    now = 0.0
    wire: list[tuple[int, ChunkPlace]] = []
    while not (receiver.is_complete and all(s.is_done for s in streams.values())):
        now += 0.3
        assert now < 300, "hangs"
        for index, stream in streams.items():
            stream.go_back_if_stuck(now, 1.0)
            wire += [(index, place) for place in stream.take(now)]
        rng.shuffle(wire)
        for index, place in wire[: rng.randrange(4)]:
            if rng.random() < 0.7:
                received, credit = receiver.accept(index, place, streams[index].total)
                if rng.random() < 0.7:
                    streams[index].confirm(received, credit, now)
            wire.remove((index, place))


def test_a_chunk_outside_the_stage_is_refused() -> None:
    receiver = KvReceiver(LayerRange(2, 5), (0, 0, 0), 10, 100)
    for place in (
        ChunkPlace(LayerRange(1, 3), 0, 1, 0, 8),
        ChunkPlace(LayerRange(2, 6), 0, 1, 0, 8),
        ChunkPlace(LayerRange(2, 3), 9, 2, 0, 8),
        ChunkPlace(LayerRange(2, 3), 0, 0, 0, 8),
    ):
        with pytest.raises(ValueError, match="outside"):
            receiver.check(place)


def test_the_same_chunk_twice_counts_once() -> None:
    receiver = KvReceiver(LayerRange(0, 1), (0,), 2, 100)
    place = ChunkPlace(LayerRange(0, 1), 0, 1, 0, 8)
    receiver.accept(0, place, 16)
    assert receiver.accept(0, place, 16) == (8, 108)
    assert not receiver.is_complete
