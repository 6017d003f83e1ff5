"""A gateway and a planner on one bus: asked what if, answered, and nothing has moved."""

from __future__ import annotations

import asyncio

from broker.memory import MemoryTransport
from broker.whatif import Finding, WhatIf
from gateway.engine import FogEngine
from tests.planner.live.planner_rig import SITE, Fog, store


async def test_a_gateway_learns_what_would_be_planned_without_a_device() -> None:
    fog = Fog(store(None)).start().run(5)
    transport = MemoryTransport(fog.bus, "gw")
    engine = FogEngine(transport, SITE, "gw")
    await engine.start()
    transport.connect()
    gone = fog.plan.replicas[0].stages[0].device
    before = fog.plan

    async with asyncio.timeout(60):
        while engine.active_plan() is None:
            await asyncio.sleep(0.01)
        asking = asyncio.create_task(engine.what_if(WhatIf(request_id="q", drop=[gone])))
        while not asking.done():
            fog.service.step(0)
            await asyncio.sleep(0.01)
    answer = await asking

    assert answer.finding is Finding.PLANNED, answer.reason
    assert answer.plan is not None
    assert gone not in {stage.device for r in answer.plan.replicas for stage in r.stages}
    assert fog.plan == before
    assert engine.active_plan() == before
    await engine.stop()
