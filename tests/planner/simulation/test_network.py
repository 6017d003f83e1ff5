"""Flows on shared links."""

from __future__ import annotations

import numpy as np
import pytest

from broker.control import Link
from broker.plan import Role
from planner.simulation import Network, Sharing
from planner.simulation.network import Links, kv_shares
from tests.planner.simulation.scenes import replica, stage


def _links(
    sharing: Sharing = Sharing.FAIR, switch: float = float("inf"), **rates: float
) -> Links[str]:
    links = {d: Link(latency_seconds=0.0, bytes_per_second=rate) for d, rate in rates.items()}
    return Links(Network(links=links, sharing=sharing, switch_bytes_per_second=switch))


def _arrivals(links: Links[str]) -> dict[str, float]:
    found = {}
    while (now := links.next_seconds()) < float("inf"):
        for transfer in links.arrived(now):
            found[transfer.owner] = now
    return found


def test_a_lone_flow_has_its_slowest_link() -> None:
    links = _links(a=100.0, b=50.0)

    links.send(1.0, "x", [("a", "b", 200.0)])

    assert _arrivals(links) == {"x": pytest.approx(5.0)}


def test_fair_flows_share_a_link_and_leave_the_rest_to_others() -> None:
    # x and y share a's uplink of 100; y is held to 20 by b, so x has 80.
    links = _links(a=100.0, b=20.0, c=1000.0)

    links.send(0.0, "x", [("a", "c", 160.0)])
    links.send(0.0, "y", [("a", "b", 40.0)])

    assert _arrivals(links) == {"x": pytest.approx(2.0), "y": pytest.approx(2.0)}


def test_a_flow_speeds_up_when_another_ends() -> None:
    links = _links(a=100.0, b=100.0, c=100.0)

    links.send(0.0, "short", [("a", "c", 100.0)])
    links.send(0.0, "long", [("b", "c", 300.0)])

    # Half each until 2 s, then 200 bytes at the full rate.
    assert _arrivals(links) == {"short": pytest.approx(2.0), "long": pytest.approx(4.0)}


def test_first_in_first_out_gives_a_link_to_one_flow_after_the_other() -> None:
    links = _links(Sharing.FIFO, a=100.0, b=100.0, c=100.0)

    links.send(0.0, "first", [("a", "c", 100.0)])
    links.send(0.0, "second", [("b", "c", 300.0)])

    assert _arrivals(links) == {"first": pytest.approx(1.0), "second": pytest.approx(4.0)}


def test_the_switch_in_the_middle_limits_all_flows_together() -> None:
    links = _links(switch=50.0, a=100.0, b=100.0, c=100.0, d=100.0)

    links.send(0.0, "x", [("a", "b", 50.0)])
    links.send(0.0, "y", [("c", "d", 50.0)])

    assert _arrivals(links) == {"x": pytest.approx(2.0), "y": pytest.approx(2.0)}


def test_both_directions_of_a_link_are_independent() -> None:
    links = _links(a=100.0, b=100.0)

    links.send(0.0, "there", [("a", "b", 100.0)])
    links.send(0.0, "back", [("b", "a", 100.0)])

    assert _arrivals(links) == {"there": pytest.approx(1.0), "back": pytest.approx(1.0)}


def test_a_transfer_is_complete_with_its_last_part() -> None:
    links = _links(a=100.0, b=10.0, c=100.0)

    links.send(0.0, "x", [("a", "c", 50.0), ("b", "c", 50.0)])

    assert _arrivals(links) == {"x": pytest.approx(5.0)}
    assert links.moved_bytes == pytest.approx(100.0)


def test_what_stays_on_a_device_or_has_no_limit_takes_no_time() -> None:
    links = _links(a=100.0)

    kept = links.send(0.0, "kept", [("a", "a", 1e9)])
    links.send(2.0, "free", [("x", "y", 1e9)])

    assert kept.num_left == 0
    assert _arrivals(links) == {"free": pytest.approx(2.0)}


def test_a_cancelled_transfer_frees_its_links_and_counts_what_it_sent() -> None:
    links = _links(a=100.0, b=100.0)
    doomed = links.send(0.0, "doomed", [("a", "b", 1000.0)])
    links.send(0.0, "x", [("a", "b", 100.0)])

    links.cancel(1.0, doomed)

    assert _arrivals(links) == {"x": pytest.approx(1.5)}
    assert links.moved_bytes == pytest.approx(50.0 + 100.0)


@pytest.mark.parametrize("sharing", list(Sharing))
@pytest.mark.parametrize("seed", range(10))
def test_no_link_ever_carries_more_than_its_rate(sharing: Sharing, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = {name: float(rng.uniform(10, 1000)) for name in "abcdef"}
    links = _links(sharing, switch=900.0, **rates)
    sent = dict.fromkeys([(way, name) for way in ("up", "down") for name in rates], 0.0)
    names = list(rates)
    total = 0.0
    for number in range(30):
        source, target = rng.choice(names, 2, replace=False)
        size = float(rng.uniform(1, 2000))
        links.send(0.0, str(number), [(str(source), str(target), size)])
        sent["up", str(source)] += size
        sent["down", str(target)] += size
        total += size

    arrivals = _arrivals(links)

    assert len(arrivals) == 30
    last = max(arrivals.values())
    assert total / last <= 900.0 * (1 + 1e-9)
    for (_, name), size in sent.items():
        assert size / last <= rates[name] * (1 + 1e-9)


def test_kv_goes_where_layer_ranges_overlap() -> None:
    sender = replica("p", Role.PREFILL, stage("a", layers=(0, 6)), stage("b", layers=(6, 8)))
    receiver = replica("d", Role.DECODE, stage("c", layers=(0, 2)), stage("e", layers=(2, 8)))

    shares = kv_shares(sender, receiver)

    assert [(source, target) for source, target, _ in shares] == [
        ("a", "c"),
        ("a", "e"),
        ("b", "e"),
    ]
    assert [share for _, _, share in shares] == pytest.approx([0.25, 0.5, 0.25])


def test_stages_without_layer_ranges_hold_equal_shares() -> None:
    sender = replica("p", Role.PREFILL, stage("a"))
    receiver = replica("d", Role.DECODE, stage("b"), stage("c"))

    assert kv_shares(sender, receiver) == [("a", "b", 0.5), ("a", "c", 0.5)]
