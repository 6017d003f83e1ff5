import pytest

from broker.codec import decode_frame, encode_frame
from broker.plan import Plan, PlanState
from broker.prefix import DIGEST_BYTES, Prefix, kv_identity, prefix_of
from broker.work import Open, Reserve, ReserveKind, Sampling, Work


def plan(**changes: object) -> Plan:
    fields = {
        "version": 1,
        "state": PlanState.ACTIVE,
        "model": "tiny",
        "revision": "rev",
        "weights": "float32",
        "kv_format": "float32",
        "chunk_tokens": 4,
        "context_tokens": 512,
        "replicas": [],
    }
    return Plan(**{**fields, **changes})  # type: ignore[arg-type]


def opened(**changes: object) -> Open:
    fields = {
        "request_id": "q",
        "attempt": 0,
        "gateway": "g",
        "prefill_replica": "p",
        "decode_replica": "d",
        "num_prompt_tokens": 12,
        "num_generated_tokens": 0,
        "max_tokens": 8,
        "sampling": Sampling(),
        "prefix": prefix_of("kv", range(12), 4),
    }
    return Open(**{**fields, **changes})  # type: ignore[arg-type]


def test_only_whole_chunks_have_a_digest() -> None:
    assert [prefix_of("kv", range(n), 4).num_tokens for n in (0, 3, 4, 11, 12)] == [0, 0, 4, 8, 12]


def test_two_prompts_share_their_chunks_up_to_the_first_that_differs() -> None:
    one = prefix_of("kv", range(16), 4)
    other = prefix_of("kv", [*range(9), 99, *range(10, 16)], 4)

    assert one.shared_tokens(one) == 16
    assert one.shared_tokens(other) == other.shared_tokens(one) == 8
    assert one.shared_tokens(one.within(7)) == 4


def test_equal_chunks_behind_different_ones_are_not_equal() -> None:
    one, other = prefix_of("kv", [1, 2, 3, 4], 2), prefix_of("kv", [5, 6, 3, 4], 2)

    assert one.digests[DIGEST_BYTES:] != other.digests[DIGEST_BYTES:]


def test_ids_are_told_apart_wherever_their_digits_are() -> None:
    assert prefix_of("kv", [1, 23], 2) != prefix_of("kv", [12, 3], 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("revision", "other"),
        ("weights", "int8"),
        ("kv_format", "bfloat16"),
        ("kv_transfer", "int8"),
        ("chunk_tokens", 8),
    ],
)
def test_what_decides_the_kv_is_part_of_every_digest(name: str, value: object) -> None:
    usual, other = kv_identity(plan()), kv_identity(plan(**{name: value}))

    assert usual != other
    assert prefix_of(usual, range(8), 4).shared_tokens(prefix_of(other, range(8), 4)) == 0


def test_another_grid_shares_nothing() -> None:
    assert prefix_of("kv", range(16), 4).shared_tokens(prefix_of("kv", range(16), 8)) == 0


def test_ends_name_the_longest_beginning_first() -> None:
    prefix = prefix_of("kv", range(9), 4)

    (longest, last), (shortest, first) = prefix.ends()

    assert (longest, shortest) == (8, 4)
    assert first + last == prefix.digests


def test_within_is_rounded_down_and_never_negative() -> None:
    prefix = prefix_of("kv", range(12), 4)

    found = {n: prefix.within(n).num_tokens for n in (-1, 0, 3, 4, 11, 12, 99)}

    assert found == {-1: 0, 0: 0, 3: 0, 4: 4, 11: 8, 12: 12, 99: 12}


@pytest.mark.parametrize(("chunk_tokens", "digests"), [(0, b""), (4, b"half")])
def test_a_prefix_that_is_none_is_refused(chunk_tokens: int, digests: bytes) -> None:
    with pytest.raises(ValueError, match=r"chunk|digests"):
        Prefix(chunk_tokens, digests)


def test_it_travels_with_reserve_and_open() -> None:
    prefix = prefix_of("kv", range(12), 4)
    asked = Reserve(
        request_id="q",
        attempt=0,
        gateway="g",
        kind=ReserveKind.BOTH,
        known_tokens=12,
        max_tokens=8,
        prefix=prefix,
    )

    for message in (asked, opened(cached_tokens=8)):
        assert decode_frame(bytes(encode_frame(message)), Work)[0] == message


@pytest.mark.parametrize(
    "changes",
    [
        {"cached_tokens": 12},  # nothing would be left from which the next token follows
        {"held_tokens": -4},
        {"prefix": None, "cached_tokens": 4},
        {"num_prompt_tokens": 11},
    ],
)
def test_open_says_no_more_than_can_be_kept(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"positions are kept|longer than the prompt"):
        opened(**changes)


def test_a_whole_prompt_may_be_kept_when_its_answer_goes_on() -> None:
    assert opened(num_generated_tokens=1, cached_tokens=12).known_tokens == 13
