"""When a gateway counts as lost."""

from broker.control import DeviceState, GatewayStatus
from nodes.gateways import GatewayWatch


def status(state: DeviceState, session: int) -> GatewayStatus:
    return GatewayStatus(state=state, session=session)


def test_a_gateway_is_lost_once_when_its_time_is_over() -> None:
    watch = GatewayWatch(10.0)
    watch.see("gw", status(DeviceState.LOST, 1), now=5.0)
    assert watch.take_lost(14.9) == []
    assert watch.take_lost(15.0) == ["gw"]
    assert watch.take_lost(16.0) == []


def test_a_will_that_is_repeated_does_not_begin_the_time_again() -> None:
    watch = GatewayWatch(10.0)
    watch.see("gw", status(DeviceState.LOST, 1), now=5.0)
    watch.see("gw", status(DeviceState.LOST, 1), now=14.0)
    assert watch.take_lost(15.0) == ["gw"]


def test_a_gateway_that_comes_back_is_not_lost() -> None:
    watch = GatewayWatch(10.0)
    watch.see("gw", status(DeviceState.LOST, 1), now=5.0)
    watch.see("gw", status(DeviceState.READY, 2), now=6.0)
    assert watch.take_lost(100.0) == []


def test_the_late_will_of_an_earlier_session_changes_nothing() -> None:
    watch = GatewayWatch(10.0)
    watch.see("gw", status(DeviceState.READY, 2), now=5.0)
    watch.see("gw", status(DeviceState.LOST, 1), now=6.0)
    assert watch.take_lost(100.0) == []
