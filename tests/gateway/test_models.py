"""Several models of one gateway: added, chosen and removed, over HTTP and over a restart."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.control import DeviceState, DeviceStatus, ModelManifest
from broker.events import TokenRow, Tokens
from broker.identity import identity
from broker.plan import Plan
from gateway.choice import in_order, may_be_named
from gateway.desks import Desks
from gateway.dispatch import Actions
from gateway.fogview import FogView
from gateway.model import ModelRefusedError
from gateway.models import Models
from gateway.preparation import read_model
from tests.gateway.scripted_fog import generation, plan, replica, sent
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import MODEL, Api, settings_for
from tests.support.model_folder import write_model_folder

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "7 + 5?"}]}
SECOND = "second"


def fill(models: Models) -> None:
    """Prepare all models, as the keeper does."""
    for model in models:
        if model.served is None:
            model.slot.served = read_model(model.settings, model.slot, "test")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("second") / SECOND)


@pytest.fixture
def both(api: Api, second: Path) -> Api:
    """A gateway with two models of which the first is in use."""
    api.models.add(str(second), weights="bfloat16")
    fill(api.models)
    return api


def plan_for(*models: ModelManifest, leaving: tuple[str, ...] = ()) -> Plan:
    parts = [
        msgspec.structs.replace(
            plan(replica(f"r-{model.name}", ["a"])),
            model=model.name,
            revision=model.revision,
            weights=model.weights,
            is_leaving=model.name in leaving,
        )
        for model in models
    ]
    return msgspec.structs.replace(parts[0], others=parts[1:])


def manifests(api: Api) -> dict[str, ModelManifest]:
    return {model.name: model.served.manifest for model in api.models if model.served is not None}


async def put(api: Api, *names: str) -> Any:
    async with api.client() as client:
        return await client.put("/fog/models/use", json={"models": list(names)})


async def names_of(api: Api) -> list[str]:
    return [card["id"] for card in (await api.get("/v1/models")).json()["data"]]


# --- what requests may name ----------------------------------------------------------------


async def test_a_model_that_was_added_is_listed_and_no_request_may_name_it(both: Api) -> None:
    listed = (await both.get("/fog/models")).json()
    assert [(each["name"], each["in_use"]) for each in listed] == [(MODEL, True), (SECOND, False)]
    assert listed[1]["weights"] == "bfloat16"
    assert listed[1]["num_bytes"] > 0
    assert await names_of(both) == [MODEL]
    refused = await both.post(CHAT, {**QUESTION, "model": SECOND})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"


async def test_until_the_new_model_serves_requests_that_name_none_get_the_old_one(
    both: Api, engine: FakeEngine
) -> None:
    known = manifests(both)
    engine.active = plan_for(known[MODEL])

    assert (await put(both, SECOND)).status_code == 200

    await both.post(CHAT, QUESTION)
    await both.post(CHAT, {**QUESTION, "model": SECOND})
    assert [each.model for each in engine.submitted] == [
        identity(known[MODEL]), identity(known[SECOND]),
    ]  # fmt: skip
    assert await names_of(both) == [MODEL, SECOND]


async def test_when_the_new_model_serves_the_old_name_is_unknown(
    both: Api, engine: FakeEngine
) -> None:
    known = manifests(both)
    await put(both, SECOND)
    engine.active = plan_for(known[SECOND], known[MODEL], leaving=(MODEL,))

    answers = [
        await both.post(CHAT, {**QUESTION, **named})
        for named in ({}, {"model": "default"}, {"model": SECOND}, {"model": MODEL})
    ]

    assert [each.status_code for each in answers] == [200, 200, 200, 404]
    assert {each.json()["model"] for each in answers[:3]} == {SECOND}
    error = answers[3].json()["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert SECOND in error["message"]
    assert await names_of(both) == [SECOND]


async def test_several_models_in_use_are_answered_by_their_names(
    both: Api, engine: FakeEngine
) -> None:
    known = manifests(both)
    await put(both, MODEL, SECOND)
    engine.active = plan_for(known[MODEL], known[SECOND])
    for name in (MODEL, SECOND):
        assert (await both.post(CHAT, {**QUESTION, "model": name})).json()["model"] == name
    assert await names_of(both) == [MODEL, SECOND]


async def test_an_answer_of_a_model_that_leaves_is_read_on(both: Api, engine: FakeEngine) -> None:
    known = manifests(both)
    await both.post(CHAT, QUESTION)
    (asked,) = engine.submitted
    both.write_down(asked, [5, 6])
    await put(both, SECOND)
    engine.active = plan_for(known[SECOND], known[MODEL], leaving=(MODEL,))
    answer_id = asked.request_id.removesuffix("-0")

    found = await both.get(f"/fog/requests/{answer_id}")
    engine.active = plan_for(known[SECOND])
    later = await both.get(f"/fog/requests/{answer_id}")

    assert (found.status_code, found.json()["model"]) == (200, MODEL)
    assert engine.submitted[-1].model == identity(known[MODEL])
    assert (later.status_code, later.json()["error"]["code"]) == (409, "model_changed")


def test_a_model_in_use_may_be_named_before_there_is_a_plan(both: Api) -> None:
    known = manifests(both)
    assert [each.name for each in in_order(known.values(), None)] == [MODEL]
    assert not may_be_named(known[SECOND], plan_for(known[MODEL]))


# --- what a person asks --------------------------------------------------------------------


async def test_a_name_that_is_taken_an_unknown_one_and_one_in_use_are_refused(
    both: Api, second: Path, engine: FakeEngine
) -> None:
    async with both.client() as client:
        taken = await client.post("/fog/models", json={"source": str(second)})
        format_ = await client.post(
            "/fog/models", json={"source": str(second), "name": "x", "weights": "int3"}
        )
        wrong = [
            await client.post("/fog/models", json={"source": source})
            for source in ("", "x" * 300, "a\x00b")
        ]
        used = await client.delete(f"/fog/models/{MODEL}")
        unknown = await client.delete("/fog/models/nobody")
        engine.active = plan_for(*manifests(both).values(), leaving=(SECOND,))
        leaving = await client.delete(f"/fog/models/{SECOND}")
        engine.active = None
        engine.unfinished = {SECOND: 1}
        busy = await client.delete(f"/fog/models/{SECOND}")
        engine.unfinished = {}
        removed = await client.delete(f"/fog/models/{SECOND}")

    assert [each.status_code for each in (taken, used, leaving, busy)] == [409] * 4
    assert [each.status_code for each in (format_, *wrong)] == [400] * 4
    assert unknown.status_code == 404
    assert [each["name"] for each in removed.json()] == [MODEL]
    assert (await put(both)).status_code == 400
    assert (await put(both, SECOND)).status_code == 404


async def test_a_model_that_is_not_prepared_or_damaged_cannot_be_used(
    api: Api, second: Path
) -> None:
    added = api.models.add(str(second))
    waiting = await put(api, SECOND)
    api.models.give_up(added, "no such folder")
    refused = await put(api, SECOND)
    assert (waiting.status_code, refused.status_code) == (409, 409)
    assert refused.json()["error"]["message"] == "no such folder"
    (listed,) = [x for x in (await api.get("/fog/models")).json() if x["name"] == SECOND]
    assert (listed["state"], listed["detail"]) == ("refused", "no such folder")
    assert await names_of(api) == [MODEL]


async def test_a_model_that_was_refused_may_be_added_again(api: Api, second: Path) -> None:
    api.models.give_up(api.models.add(f"/nowhere/{SECOND}"), "no such folder")

    async with api.client() as client:
        again = await client.post("/fog/models", json={"source": str(second)})

    assert again.status_code == 202
    listed = (await api.get("/fog/models")).json()
    assert [each["source"] for each in listed if each["name"] == SECOND] == [str(second)]


# --- over a restart ------------------------------------------------------------------------


def test_what_was_added_and_chosen_lasts_over_a_restart(both: Api, second: Path) -> None:
    both.models.use([SECOND])

    again = Models(both.settings)

    assert [(each.name, each.in_use) for each in again] == [(MODEL, False), (SECOND, True)]
    assert again.find(SECOND).settings.weights == "bfloat16"


def test_another_model_in_the_settings_is_the_one_in_use(both: Api, second: Path) -> None:
    both.models.use([SECOND])
    settings = replace(both.settings, model=str(second.parent), model_name="third")
    again = Models(settings)
    assert [(each.name, each.in_use) for each in again] == [
        ("third", True), (MODEL, False), (SECOND, False),
    ]  # fmt: skip


def test_a_damaged_file_is_as_none(both: Api) -> None:
    both.models.use([SECOND])
    (both.settings.state / "models.json").write_text('{"setting": 7')
    assert [(each.name, each.in_use) for each in Models(both.settings)] == [(MODEL, True)]


# --- the keeper ----------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_models_are_published_as_they_are_chosen_and_taken_back_when_removed(
    engine: FakeEngine, api: Api, second: Path
) -> None:
    async with api.kept():
        await until(lambda: [each.name for each in engine.published] == [MODEL])
        api.models.add(str(second), weights="bfloat16")
        await until(lambda: len(engine.published) == 2)
        assert (engine.published[1].name, engine.published[1].in_use) == (SECOND, False)
        assert engine.published[1].urls
        assert engine.expected == [MODEL, SECOND]

        api.models.use([SECOND])
        await until(lambda: len(engine.published) == 4)
        assert [(each.name, each.in_use) for each in engine.published[2:]] == [
            (MODEL, False), (SECOND, True),
        ]  # fmt: skip

        api.models.remove(MODEL, engine)
        await until(lambda: engine.withdrawn == [MODEL])


async def test_a_model_that_is_refused_leaves_the_others_alone(
    engine: FakeEngine, api: Api, second: Path
) -> None:
    async with api.kept(SECOND) as task:
        added = api.models.add(str(second))
        await until(lambda: added.refused is not None)
        assert added.refused == f"{SECOND} is damaged"
        assert not task.done()
    assert {each.name for each in engine.published} == {MODEL}


async def test_the_same_weights_under_another_name_are_refused(
    engine: FakeEngine, api: Api, folder: Path
) -> None:
    async with api.kept():
        await until(lambda: bool(engine.published))
        added = api.models.add(str(folder), "twin")
        await until(lambda: added.refused is not None)
    assert "is the model 'tiny' again" in (added.refused or "")


async def test_a_gateway_whose_only_model_is_refused_ends(
    engine: FakeEngine, folder: Path, tmp_path: Path
) -> None:
    api = Api(engine, settings_for(folder, tmp_path), prepared=False)
    async with api.kept(MODEL) as task:
        with pytest.raises(ModelRefusedError):
            await asyncio.wait_for(asyncio.shield(task), 20)


async def test_a_choice_that_is_refused_after_a_restart_goes_back_to_the_settings(
    engine: FakeEngine, both: Api
) -> None:
    both.models.use([SECOND])
    again = Api(engine, both.settings, prepared=False)
    async with again.kept(SECOND):
        await until(lambda: bool(engine.published) and engine.published[-1].in_use)
    assert [(each.name, each.in_use) for each in again.models] == [(MODEL, True), (SECOND, False)]


# --- one dispatcher for each ---------------------------------------------------------------

ONE = ModelManifest(name="one", revision="rev-1", config={}, tensors={})
TWO = ModelManifest(name="two", revision="rev-2", config={}, tensors={})


def desks() -> Desks:
    found = Desks("lab", "gw")
    for manifest in (ONE, TWO):
        found.open(manifest)
    return found


def view(*models: ModelManifest) -> FogView:
    parts = [
        msgspec.structs.replace(
            plan(replica(f"r-{model.name}", [f"d-{model.name}"])),
            model=model.name,
            revision=model.revision,
        )
        for model in models
    ]
    found = FogView(model=models[0]).with_plan(msgspec.structs.replace(parts[0], others=parts[1:]))
    for model in models:
        ready = DeviceStatus(state=DeviceState.READY, session=1)
        found = found.with_status(f"d-{model.name}", ready, 0.0)
    return found


def asked(actions: Actions) -> set[str]:
    return {names["device"] for names, _ in sent(actions)}


def test_each_request_goes_to_the_replicas_of_its_model() -> None:
    found = desks()
    found.fog_changed(view(ONE, TWO), 0.0)
    for manifest in (ONE, TWO):
        request = replace(generation(manifest.name), model=identity(manifest))
        assert asked(found.submit(request, 0.0)) == {f"d-{manifest.name}"}
    assert found.num_unfinished(ONE) == found.num_unfinished(TWO) == 1
    assert found.of(identity(ONE)).largest_request_tokens() == 2048


def test_a_model_without_a_plan_keeps_its_requests_and_holds_up_nobody() -> None:
    found = desks()
    found.fog_changed(view(ONE), 0.0)
    waiting = found.submit(replace(generation("waits"), model=identity(TWO)), 0.0)
    runs = found.submit(replace(generation("runs"), model=identity(ONE)), 0.0)
    assert (asked(waiting), asked(runs)) == (set(), {"d-one"})
    later = found.fog_changed(view(TWO, ONE), 1.0)
    assert asked(later) == {"d-two"}


def test_a_desk_with_requests_stays_until_they_end() -> None:
    found = desks()
    found.fog_changed(view(ONE, TWO), 0.0)
    found.submit(replace(generation("a"), model=identity(TWO)), 0.0)
    found.close(TWO)
    assert found.num_unfinished(TWO) == 1
    found.cancel("a", 1.0)
    found.close(TWO)
    assert found.num_unfinished(TWO) == 0


def test_tokens_of_a_stranger_are_counted_once() -> None:
    found = desks()
    found.fog_changed(view(ONE, TWO), 0.0)
    row = TokenRow(request_id="nobody", attempt=1, index=0, token_id=5)
    found.handle("d-one", Tokens(rows=[row]), 1.0)
    assert sum(found.dropped.values()) == 1
