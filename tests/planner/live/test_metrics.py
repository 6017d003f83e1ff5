from broker.control import DeviceState
from broker.exposition import Exposition
from broker.topics import DEVICE_STATUS
from planner.live.metrics import TABLE
from tests.planner import fogs
from tests.planner.live.planner_rig import Fog, store
from tests.support.metrics import NONE, Labels, labels, parsed


def told(fog: Fog) -> dict[str, dict[Labels, float]]:
    body, _ = Exposition(TABLE, lambda: fog.service.samples).text()
    return parsed(body.decode())


def test_a_planner_tells_of_its_plan_and_of_devices_by_state() -> None:
    fog = Fog(store(None)).start().run(10)

    found = told(fog)

    assert found["e2llm_planner_leads"] == {NONE: 1}
    assert found["e2llm_planner_redis_up"] == {NONE: 0}
    assert found["e2llm_planner_plan_version"] == {NONE: fog.plan.version}
    assert found["e2llm_planner_plan_is_changing"] == {NONE: 0}
    assert found["e2llm_planner_decisions_total"][labels(outcome="adopted")] == 1
    num_ready = found["e2llm_planner_devices"][labels(state="ready")]
    assert num_ready == len(fog.service.control.knowledge.devices)
    assert sum(found["e2llm_planner_replicas"].values()) == len(fog.plan.replicas)
    predicted = found["e2llm_planner_predicted_tpot_seconds"][NONE]
    assert predicted == fog.plan.predicted.tpot_seconds
    assert found["e2llm_bus_messages_total"][labels(direction="sent")] > 0


def test_a_lost_device_and_the_plan_without_it_are_told() -> None:
    fog = Fog(store(None)).start().run(10)
    before = told(fog)["e2llm_planner_devices"][labels(state="ready")]

    gone = fog.plan.replicas[0].stages[0].device
    fog.say(DEVICE_STATUS, fogs.status(state=DeviceState.LOST), device=gone)
    fog.run(10)

    found = told(fog)
    assert found["e2llm_planner_devices"][labels(state="ready")] == before - 1
    assert found["e2llm_planner_devices"][labels(state="lost")] == 1
    assert found["e2llm_planner_decisions_total"][labels(outcome="adopted")] == 2
    assert found["e2llm_planner_plan_version"] == {NONE: fog.plan.version}
