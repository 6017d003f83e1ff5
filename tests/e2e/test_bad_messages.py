"""Rubbish over MQTT with the credentials of the fog's own members; nothing may notice."""

import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from broker.access import Credential
from broker.credentials import load_credentials
from broker.limits import DEFAULT_MAX_PAYLOAD_BYTES
from broker.mqtt import MqttTransport
from broker.topics import (
    ALL_TOPICS,
    DEVICE_CONTROL,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    DEVICE_TENSORS,
    GATEWAY_EVENTS,
    GATEWAY_STATUS,
    HOME_CORDON,
    HOME_DEVICE,
    HOME_FOG,
    HOME_GATEWAY,
    MODEL,
    PLAN,
    PLAN_HISTORY,
    PLANNER_STATUS,
    PLANNER_USER,
    REPLY,
    STAGE_WORK,
    WHAT_IF_ANSWER,
    QoS,
    Topic,
)
from broker.transport import Disconnected, Publication, Received
from fog.config import CLIENT_ID, GATEWAY_ID
from tests.support.bus import wait_for
from tests.support.garbage import NOBODY, absurd, unreadable, writable_topics
from tests.support.running_fog import SITE, RunningFog

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.slow]

QUESTION = "What is 7 plus 5?"
# Nobody has rights to the others while Home Assistant is off (`tests/gateway/home`).
HOME = (HOME_CORDON, HOME_DEVICE, HOME_FOG, HOME_GATEWAY)
TOPICS = [topic for topic in ALL_TOPICS if topic not in HOME]
# Of the default model: a shape can be right and everything else wrong.
HIDDEN_SIZE = 128
READ_BY_GATEWAY = (
    GATEWAY_EVENTS,
    DEVICE_TELEMETRY,
    DEVICE_STATUS,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    PLAN,
    PLANNER_STATUS,
    MODEL,
    GATEWAY_STATUS,
    WHAT_IF_ANSWER,
)
# Gateway and nodes, or the planner, about something that they did not take.
COMPLAINT = re.compile(r"dropped a message on (\S+): | planner: (\S+): .* refused so far\)")


@contextmanager
def answering(fog: RunningFog) -> Iterator[None]:
    """Ask one after the other while the block lasts; every answer must be the right one."""
    expected = fog.ask(QUESTION).token_ids
    before = fog.pids()
    stop = threading.Event()
    answers: list[object] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(fog.ask(QUESTION).token_ids)
            except Exception as error:  # shown by the assertion below
                answers.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield
    finally:
        stop.set()
        asker.join(60)
    answers.append(fog.ask(QUESTION).token_ids)
    assert answers == [expected] * len(answers)
    assert fog.pids() == before, "a process ended"


def places(fog: RunningFog, user: str) -> Iterator[dict[str, str]]:
    """Yield where a user's rubbish goes: to every stage of both replicas, and beside them."""
    constant = {"gateway": GATEWAY_ID, "sender": user, "client": user, "request": "1"}
    for replica in fog.plan()["replicas"]:
        for index, stage in enumerate(replica["stages"]):
            there = {"replica": replica["id"], "stage": str(index), "device": stage["device"]}
            yield {**constant, **there, "model": fog.model}
    yield {**constant, **there, "stage": "99", "model": NOBODY}
    yield {**constant, **there, "stage": "first", "gateway": NOBODY, "model": NOBODY}
    yield {**constant, **there, "replica": NOBODY, "model": NOBODY}


def dropped_by_nodes(fog: RunningFog) -> dict[str, int]:
    return {
        d: (v["telemetry"] or {}).get("dropped_messages") or 0 for d, v in fog.devices().items()
    }


def dropped_by_gateway(fog: RunningFog) -> dict[str, int]:
    details = httpx2.get(f"{fog.url}/readyz").json()["details"]
    dropped: dict[str, int] = details["dropped"]
    return dropped


def complaints(fog: RunningFog) -> set[str]:
    """Return the topics that anybody complained about in a log."""
    found = (COMPLAINT.findall(text) for text in fog.logs().values())
    return {"".join(match) for matches in found for match in matches}


def credential(fog: RunningFog, user: str) -> Credential:
    return load_credentials(fog.state.broker / "credentials.json")[user]


def test_rubbish_on_every_topic_is_logged_and_counted_while_requests_are_answered(
    fog: RunningFog,
) -> None:
    stages = fog.replica("decode")["stages"]
    replicas = fog.replica("prefill")["id"], fog.replica("decode")["id"]
    # Neighbours in a ring believe each other most; planner and gateway reach everybody.
    users = [stages[0]["device"], stages[-1]["device"], GATEWAY_ID, PLANNER_USER, CLIENT_ID]
    nodes_before, gateway_before = dropped_by_nodes(fog), dropped_by_gateway(fog)
    rng = random.Random(20)
    sent: dict[str, Topic[Any]] = {}

    with answering(fog):
        for user in users:
            paths = writable_topics(credential(fog, user), SITE, [*places(fog, user)])
            sent.update(paths)
            with fog.bus(user) as bus:
                for path, topic in paths.items():
                    payloads = [
                        *unreadable(topic, rng),
                        *absurd(topic, user, replicas, HIDDEN_SIZE),
                    ]
                    for payload in payloads:
                        bus.publish(Publication(path, payload))
                for path in {topic: path for path, topic in paths.items()}.values():
                    # The longest that the broker passes on.
                    long = rng.randbytes(DEFAULT_MAX_PAYLOAD_BYTES)
                    bus.publish(Publication(path, long))

    assert set(sent.values()) == set(TOPICS)
    # Only its client reads a reply.
    read: set[Topic[Any]] = {*sent.values()} - {REPLY}

    def without_complaint() -> list[str]:
        complained = {sent[path] for path in complaints(fog) & set(sent)}
        return sorted(topic.template for topic in read - complained)

    def not_counted() -> list[str]:
        nodes, gateway = dropped_by_nodes(fog), dropped_by_gateway(fog)
        templates = [topic.template for topic in READ_BY_GATEWAY]
        return [
            *(device for device in nodes if nodes[device] <= nodes_before[device]),
            *(t for t in templates if gateway.get(t, 0) <= gateway_before.get(t, 0)),
        ]

    fog.until_none_of(without_complaint, "is a topic about which no log complains")
    fog.until_none_of(not_counted, "is not counted as dropped")


def test_a_message_over_the_limit_costs_its_sender_the_connection_and_nobody_else(
    fog: RunningFog,
) -> None:
    stages = fog.replica("decode")["stages"]
    sender, receiver = stages[0]["device"], stages[1]["device"]
    replica = fog.replica("decode")["id"]
    path = STAGE_WORK.path(SITE, replica=replica, stage=1, device=receiver, sender=sender)
    size = 2 * DEFAULT_MAX_PAYLOAD_BYTES

    with answering(fog), fog.bus(sender, max_payload_bytes=size) as bus:
        bus.publish(Publication(path, bytes(size)))
        wait_for(bus, Disconnected)


def test_retained_rubbish_does_not_take_the_fog_down(fog: RunningFog) -> None:
    device = fog.replica("decode")["stages"][1]["device"]
    place = {"model": fog.model, "device": device, "gateway": GATEWAY_ID}
    retained = {topic.path(SITE, **place): topic for topic in TOPICS if topic.retained}
    rubbish = random.Random(21).randbytes(500)

    with fog.bus(PLANNER_USER) as planner, fog.bus(GATEWAY_ID) as gateway:
        writers = {
            path: gateway if topic in (MODEL, GATEWAY_STATUS, DEVICE_CONTROL) else planner
            for path, topic in retained.items()
        }
        # Of a device that its owner wants nothing of, and that hands no weights on, nothing is
        # retained.
        absent = (DEVICE_CONTROL, DEVICE_TENSORS)
        good = {
            path: b"" if topic in absent else retained_payload(planner, path)
            for path, topic in retained.items()
        }
        try:
            with answering(fog):
                for path, writer in writers.items():
                    for payload in (b"{}", rubbish):
                        writer.publish(Publication(path, payload, QoS.AT_LEAST_ONCE, retained=True))
                # What was published is there, or this test would show nothing.
                # The planner says its history again at once when it reads anything else there.
                stays = [path for path, topic in retained.items() if topic is not PLAN_HISTORY]
                assert {retained_payload(planner, path) for path in stays} == {rubbish}
                assert fog.client.readiness().ready
        finally:
            for path, writer in writers.items():
                writer.publish(Publication(path, good[path], QoS.AT_LEAST_ONCE, retained=True))


def retained_payload(reader: MqttTransport, path: str) -> bytes:
    """Return what the broker retains; subscribing again brings it again."""
    reader.subscribe([(path, QoS.AT_LEAST_ONCE)])
    return wait_for(reader, Received, lambda r: r.topic == path and r.retained).payload


def test_a_device_that_somebody_cleared_from_the_bus_comes_back(fog: RunningFog) -> None:
    device = fog.replica("decode")["stages"][1]["device"]
    status = DEVICE_STATUS.path(SITE, device=device)

    with answering(fog), fog.bus(device) as bus:
        retained_payload(bus, status)
        for topic in (DEVICE_LOADED, DEVICE_PROFILE, DEVICE_STATUS):
            # An empty payload is no rubbish: it takes back what was retained.
            path = topic.path(SITE, device=device)
            bus.publish(Publication(path, b"", topic.qos, retained=True))
        wait_for(bus, Received, lambda r: r.topic == status and not r.payload)
        wait_for(bus, Received, lambda r: r.topic == status and bool(r.payload))
        fog.wait_until_whole()
