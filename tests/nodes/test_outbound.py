"""Each message leaves on its own topic, over the right connection."""

import pytest

from broker.codec import decode_frame
from broker.events import Opened
from broker.plan import LayerRange
from broker.topics import GATEWAY_EVENTS, STAGE_CREDIT, STAGE_KV, STAGE_WORK, Topic
from broker.work import Data, Forward, KvChunk, KvCredit, Release, TensorMeta
from nodes.outbound import Channel, Outbound
from nodes.outgoing import ToGateway, ToStage

OUTBOUND = Outbound("home", "pi")
FLOATS = bytes(range(16))
FORWARD = Forward(request_id="r", attempt=1, start_position=0, tensor=TensorMeta("float32", (1, 4)))
CHUNK = KvChunk(
    request_id="r",
    attempt=1,
    layers=LayerRange(0, 1),
    position=0,
    num_positions=1,
    offset=0,
    total=16,
    checksum=0,
    tensor=TensorMeta("float32", (1, 2, 1, 1, 2)),
)
CREDIT = KvCredit(request_id="r", attempt=1, received=0, credit=16)


@pytest.mark.parametrize(
    ("header", "tensor", "topic", "channel"),
    [
        (FORWARD, FLOATS, STAGE_WORK, Channel.WORK),
        (Release(request_id="r", attempt=1), b"", STAGE_WORK, Channel.WORK),
        (CREDIT, b"", STAGE_CREDIT, Channel.WORK),
        (CHUNK, FLOATS, STAGE_KV, Channel.KV),
    ],
)
def test_the_kind_of_message_decides_topic_and_connection(
    header: Data, tensor: bytes, topic: Topic[Data], channel: Channel
) -> None:
    used, publication = OUTBOUND.publication(ToStage("r-1", 2, "orin", header, tensor))
    assert used is channel
    assert topic.match(publication.topic) == {
        "site": "home",
        "replica": "r-1",
        "stage": "2",
        "device": "orin",
        "sender": "pi",
    }
    assert (publication.qos, publication.retained) == (topic.qos, False)
    decoded, data = decode_frame(publication.payload, topic.message)
    assert (decoded, bytes(data)) == (header, tensor)


def test_events_go_to_the_gateway_under_our_own_name() -> None:
    event = Opened(request_id="r", attempt=1, replica="r-1", stage=0)
    channel, publication = OUTBOUND.publication(ToGateway("gw", event))
    names = GATEWAY_EVENTS.match(publication.topic)
    assert channel is Channel.WORK
    assert names == {"site": "home", "gateway": "gw", "sender": "pi"}
    assert decode_frame(publication.payload, GATEWAY_EVENTS.message)[0] == event
