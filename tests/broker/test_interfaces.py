"""Which networks a fog is looked for on, and that mDNS finds it there."""

import random

import pytest

from broker.discovery import Advertisement, look
from broker.interfaces import Interface, addresses_of, interfaces_here, judge

UP = frozenset({"up", "broadcast", "running", "multicast"})


def interface(name: str, address: str = "192.168.1.7", flags: frozenset[str] = UP) -> Interface:
    return Interface(name, (address,) if address else (), flags)


@pytest.mark.parametrize("name", ["eth0", "enp3s0", "wlan0", "wlp2s0", "en0"])
def test_a_network_of_the_machine_is_used(name: str) -> None:
    (verdict,) = judge([interface(name)])
    assert verdict.is_used


@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        ("docker0", UP, "containers"),
        ("br-0123456789ab", UP, "containers"),
        ("veth12ab", UP, "containers"),
        ("virbr0", UP, "containers"),
        ("cni0", UP, "containers"),
        ("tun0", UP, "VPN"),
        ("wg0", UP, "VPN"),
        ("tailscale0", UP, "VPN"),
        ("zt5u4y", UP, "VPN"),
        ("utun3", UP, "VPN"),
        ("corp", UP | {"pointopoint"}, "VPN"),
        ("lo", UP | {"loopback"}, "this machine alone"),
        ("eth1", frozenset({"multicast"}), "down"),
    ],
)
def test_networks_that_lead_elsewhere_are_left_out_with_the_reason(
    name: str, flags: frozenset[str], reason: str
) -> None:
    (verdict,) = judge([interface(name, flags=flags)])
    assert not verdict.is_used
    assert reason in verdict.text


def test_a_bridge_of_a_person_is_not_one_of_containers() -> None:
    assert judge([interface("br-lan")])[0].is_used
    assert judge([interface("br0")])[0].is_used


def test_wired_networks_come_first_and_unused_ones_last() -> None:
    names = ["docker0", "wlan0", "eth0"]
    random.Random(1).shuffle(names)
    verdicts = judge([interface(name) for name in names])
    assert [verdict.interface.name for verdict in verdicts] == ["eth0", "wlan0", "docker0"]


def test_a_person_may_name_any_interface_that_has_an_address() -> None:
    verdicts = judge([interface("eth0"), interface("tun0", "10.8.0.2")], wanted=["tun0"])
    assert addresses_of(verdicts) == ["10.8.0.2"]
    assert not judge([interface("eth0", "")], wanted=["eth0"])[0].is_used


def test_this_machine_has_a_loopback_that_is_not_used() -> None:
    (loopback,) = [v for v in judge(interfaces_here()) if "127.0.0.1" in v.interface.addresses]
    assert not loopback.is_used


def test_mdns_finds_a_gateway_where_it_is_told_of() -> None:
    advertisement = Advertisement("gateway-of-a-test", 8081)
    advertisement.start(["127.0.0.1"])
    try:
        found = [gateway for gateway in look("127.0.0.1", 5.0) if "of-a-test" in gateway.name]
    finally:
        advertisement.stop()
    assert [(gateway.url, gateway.through) for gateway in found] == [
        ("http://127.0.0.1:8081", "127.0.0.1")
    ]
