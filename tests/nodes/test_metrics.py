from broker.exposition import Exposition
from broker.plan import Loaded, LoadState, ReadFrom
from broker.telemetry import Telemetry
from broker.traffic import Traffic
from nodes.metrics import TABLE, samples
from tests.support.metrics import NONE, labels, parsed
from tests.support.node_rig import NodeRig

LOADED = Loaded(
    session=1,
    version=3,
    state=LoadState.LOADING,
    stages=["r/0"],
    loaded_bytes=30,
    total_bytes=100,
    sources=[
        ReadFrom(source="neighbour pi", num_bytes=10),
        ReadFrom(source="neighbour hall", num_bytes=15),
        ReadFrom(source="hub huggingface.co", num_bytes=5),
    ],
)


def test_what_a_device_cannot_measure_is_left_out() -> None:
    telemetry = Telemetry(cpu_load_ratio=0.5, proposed_tokens=8, accepted_tokens=0)

    body, _ = Exposition(TABLE, lambda: samples(telemetry, LOADED, Traffic())).text()

    found = parsed(body.decode())
    assert found["e2llm_node_cpu_load_ratio"] == {NONE: 0.5}
    assert found["e2llm_node_spec_decode_num_draft_tokens_total"] == {NONE: 8}
    assert found["e2llm_node_spec_decode_num_accepted_tokens_total"] == {NONE: 0}
    assert "e2llm_node_battery_ratio" not in found


def test_sources_are_told_by_their_kind_and_never_by_name() -> None:
    body, _ = Exposition(TABLE, lambda: samples(Telemetry(), LOADED, Traffic())).text()

    found = parsed(body.decode())
    assert found["e2llm_node_read_bytes"] == {
        labels(source="neighbour"): 25,
        labels(source="hub"): 5,
    }
    assert found["e2llm_node_loaded_bytes"] == {NONE: 30}
    assert found["e2llm_node_assigned_bytes"] == {NONE: 100}
    assert found["e2llm_node_load_failed"] == {NONE: 0}


def test_a_node_tells_what_it_publishes_as_telemetry() -> None:
    rig = NodeRig()
    rig.start()
    rig.run(5)

    body, _ = Exposition(TABLE, rig.service.reports.samples).text()

    found = parsed(body.decode())
    assert found["e2llm_node_queue_length"] == {NONE: 0}
    assert found["e2llm_node_dropped_messages_total"] == {NONE: 0}
    assert found["e2llm_bus_messages_total"][labels(direction="sent")] > 0
    assert found["e2llm_bus_messages_total"][labels(direction="received")] > 0
