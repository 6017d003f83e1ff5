"""Topics: one place, one pattern, no name that could reach into another's."""

import pytest

from broker.topics import (
    ALL_TOPICS,
    DEVICE_STATUS,
    GATEWAY_EVENTS,
    STAGE_KV,
    STAGE_WORK,
    InvalidTopicLevelError,
    check_level,
    node_inbox,
)

NAMES: dict[str, str | int] = {"replica": "r-1", "stage": 0, "device": "pi", "sender": "mac"}


def test_a_topic_gives_back_the_names_it_was_made_of() -> None:
    topic = STAGE_WORK.path("home", **NAMES)
    assert topic == "e2llm/v1/home/replicas/r-1/stages/0/to/pi/from/mac/work"
    assert STAGE_WORK.match(topic) == {"site": "home", **{k: str(v) for k, v in NAMES.items()}}


def test_a_topic_of_another_kind_does_not_match() -> None:
    assert STAGE_KV.match(STAGE_WORK.path("home", **NAMES)) is None
    assert STAGE_WORK.match("e2llm/v1/home/plan") is None
    assert DEVICE_STATUS.match("e2llm/v2/home/devices/pi/status") is None


def test_names_that_are_not_given_become_wildcards() -> None:
    assert GATEWAY_EVENTS.filter("home", gateway="g") == "e2llm/v1/home/gateways/g/from/+/events"


def test_a_node_subscribes_to_one_filter_for_all_its_stages() -> None:
    assert node_inbox("home", "pi") == "e2llm/v1/home/replicas/+/stages/+/to/pi/from/+/+"


@pytest.mark.parametrize("name", ["", "a/b", "+", "a#", "$SYS", "x" * 129, "nul\0"])
def test_a_name_that_cannot_be_one_level_is_refused(name: str) -> None:
    with pytest.raises(InvalidTopicLevelError):
        check_level(name)
    with pytest.raises(InvalidTopicLevelError):
        DEVICE_STATUS.path("home", device=name)


def test_no_two_topics_have_the_same_pattern() -> None:
    assert len({topic.template for topic in ALL_TOPICS}) == len(ALL_TOPICS)
