"""When which retained message is published, repeated and taken back."""

from collections.abc import Mapping

from broker.transport import Publication
from gateway.home.announcements import REPEAT_SECONDS, STATE_SECONDS, Announcements
from gateway.home.entities import Value
from gateway.home.things import Thing


def thing(name: str, *, load: int = 10, role: str = "decode", text: str = "1") -> Thing:
    state: Mapping[str, Value] = {"role": role, "load": load}
    return Thing(
        f"homeassistant/device/e2llm-lab/{name}/config",
        text.encode(),
        f"e2llm/v1/lab/home-assistant/devices/{name}",
        state,
        {"role": role},
    )


def said(publications: list[Publication]) -> list[tuple[str, str]]:
    """Return who, and whether it is its discovery, its state, or the end of one."""
    found = []
    for each in publications:
        assert each.retained
        is_state = each.topic.startswith("e2llm/")
        name = each.topic.split("/")[-1 if is_state else -2]
        what = "state" if is_state else "discovery"
        found.append((name, what if each.payload else f"no {what}"))
    return found


def test_a_thing_is_announced_before_its_state_and_then_left_alone() -> None:
    announcements = Announcements()

    first = announcements.look([thing("a")], 0.0, knows_all=True)
    second = announcements.look([thing("a")], 1.0, knows_all=True)

    assert said(first) == [("a", "discovery"), ("a", "state")]
    assert second == []


def test_measured_values_wait_and_others_do_not() -> None:
    announcements = Announcements()
    announcements.look([thing("a")], 0.0, knows_all=True)

    assert announcements.look([thing("a", load=11)], 1.0, knows_all=True) == []
    changed = announcements.look([thing("a", load=11, role="idle")], 1.1, knows_all=True)
    assert said(changed) == [("a", "state")]
    assert announcements.look([thing("a", load=12, role="idle")], 2.0, knows_all=True) == []
    later = announcements.look(
        [thing("a", load=12, role="idle")], 1.1 + STATE_SECONDS, knows_all=True
    )
    assert said(later) == [("a", "state")]


def test_a_state_is_repeated_so_that_it_does_not_expire() -> None:
    announcements = Announcements()
    announcements.look([thing("a")], 0.0, knows_all=True)

    assert announcements.look([thing("a")], REPEAT_SECONDS - 0.1, knows_all=True) == []
    assert said(announcements.look([thing("a")], REPEAT_SECONDS, knows_all=True)) == [
        ("a", "state")
    ]


def test_a_discovery_that_changed_is_said_again() -> None:
    announcements = Announcements()
    announcements.look([thing("a")], 0.0, knows_all=True)

    assert said(announcements.look([thing("a", text="2")], 0.1, knows_all=True)) == [
        ("a", "discovery")
    ]


def test_a_thing_that_is_gone_is_taken_back_discovery_first() -> None:
    announcements = Announcements()
    announcements.look([thing("a"), thing("b")], 0.0, knows_all=True)

    gone = announcements.look([thing("b")], 0.1, knows_all=False)

    assert said(gone) == [("a", "no discovery"), ("a", "no state")]
    assert announcements.look([thing("b")], 0.2, knows_all=True) == []
    assert {topic.split("/")[-1] for topic in announcements.topics} == {"config", "b"}


def test_after_a_new_start_of_home_assistant_everything_is_said_again() -> None:
    announcements = Announcements()
    announcements.look([thing("a"), thing("b")], 0.0, knows_all=True)
    announcements.look([thing("b")], 0.1, knows_all=True)

    announcements.again()

    # What is gone too: Home Assistant may have been away when it was taken back.
    assert said(announcements.look([thing("b")], 0.2, knows_all=True)) == [
        ("b", "discovery"),
        ("b", "state"),
        ("a", "no discovery"),
        ("a", "no state"),
    ]


def test_what_an_earlier_run_left_goes_when_all_devices_have_been_heard() -> None:
    before = Announcements()
    before.look([thing("a"), thing("b")], 0.0, knows_all=True)
    announcements = Announcements(before.topics)

    early = announcements.look([thing("b")], 0.0, knows_all=False)
    late = announcements.look([thing("b")], 0.1, knows_all=True)

    assert said(early) == [("b", "discovery"), ("b", "state")]
    assert said(late) == [("a", "no discovery"), ("a", "no state")]


def test_a_device_that_says_so_later_is_not_taken_back() -> None:
    before = Announcements()
    before.look([thing("a")], 0.0, knows_all=True)
    announcements = Announcements(before.topics)
    announcements.look([], 0.0, knows_all=False)

    late = announcements.look([thing("a")], 0.1, knows_all=True)

    assert said(late) == [("a", "discovery"), ("a", "state")]


def test_what_is_found_on_the_bus_goes_when_nobody_knows_of_it() -> None:
    announcements = Announcements()
    stale = thing("a")
    announcements.heard(stale.discovery_topic, stale.discovery)

    assert said(announcements.look([], 0.0, knows_all=True)) == [("a", "no discovery")]
    assert announcements.topics == frozenset()


def test_what_another_gateway_took_back_is_said_again() -> None:
    announcements = Announcements()
    announcements.look([thing("a")], 0.0, knows_all=True)

    announcements.heard(thing("a").discovery_topic, b"")

    assert said(announcements.look([thing("a")], 0.1, knows_all=True)) == [("a", "discovery")]


def test_its_own_messages_change_nothing_when_they_come_back() -> None:
    announcements = Announcements()
    one = thing("a")
    announcements.look([one], 0.0, knows_all=True)

    announcements.heard(one.discovery_topic, one.discovery)

    assert announcements.look([one], 0.1, knows_all=True) == []
