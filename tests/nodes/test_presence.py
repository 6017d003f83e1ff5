"""Sessions: an earlier run's late will never wins."""

from broker.control import DeviceState, DeviceStatus
from nodes.presence import Presence, Reaction


def status(session: int, state: DeviceState = DeviceState.READY) -> DeviceStatus:
    return DeviceStatus(state=state, session=session)


def announced(session: int) -> Presence:
    presence = Presence(session)
    presence.is_announced = True
    return presence


def test_a_node_may_announce_itself_when_only_earlier_sessions_are_known() -> None:
    assert Presence(100).see(status(99)) is Reaction.ANNOUNCE


def test_a_node_whose_clock_went_back_takes_a_later_session_than_the_retained_one() -> None:
    presence = Presence(100)
    assert presence.see(status(500)) is Reaction.RESTART
    assert presence.session == 501


def test_the_will_of_an_earlier_session_that_comes_late_is_contradicted() -> None:
    assert announced(100).see(status(90, DeviceState.LOST)) is Reaction.ANNOUNCE


def test_its_own_will_after_a_lost_connection_is_contradicted() -> None:
    assert announced(100).see(status(100, DeviceState.LOST)) is Reaction.ANNOUNCE


def test_the_echo_of_its_own_word_changes_nothing() -> None:
    presence = announced(100)
    assert presence.see(status(100)) is Reaction.NOTHING
    assert presence.session == 100


def test_a_later_session_under_its_id_makes_it_connect_again_as_a_still_later_one() -> None:
    presence = announced(100)
    assert presence.see(status(200)) is Reaction.RESTART
    assert (presence.session, presence.is_announced) == (201, False)
