"""The pages where people ask: chat, requests in flight, what if. In Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.async_api import Page, expect

from broker.whatif import Finding, WhatIfAnswer
from gateway.course import Stretch
from tests.gateway.dashboard.conftest import NARROW, OpenWindow, Shown
from tests.gateway.dashboard.test_supposed import ANSWER
from tests.support.model_folder import EOS, ids_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTION = "7+5?"


@pytest.fixture
def answering(shown: Shown) -> Iterator[Shown]:
    """A fog that answers, and waits before the third token."""
    fog = shown.fog
    fog.script = lambda generation: [*ids_of("It is 12."), EOS]
    fog.hold_after = 2
    fog.holding.clear()
    fog.go_on.clear()
    yield shown
    fog.go_on.set()
    fog.hold_after = None


async def ask(page: Page, text: str) -> None:
    entry = page.get_by_label("Message")
    await entry.fill(text)
    await entry.press("Enter")


async def test_an_answer_streams_and_the_cursor_stays_where_one_writes(
    window: OpenWindow, answering: Shown
) -> None:
    shown = await window(NARROW)
    page = await shown.open("chat")
    await ask(page, QUESTION)

    log = page.get_by_role("log")
    await expect(log.get_by_text(QUESTION)).to_be_visible()
    await expect(log.get_by_text("It", exact=False).last).to_be_visible()
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    await expect(log.get_by_text("It is 12.")).to_have_count(0)
    answering.fog.go_on.set()
    await expect(log.get_by_text("It is 12.")).to_be_visible()

    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    await expect(page.get_by_label("Message")).to_be_focused()
    await expect(page.get_by_label("Message")).to_have_value("")
    assert shown.complaints == []


async def test_stopping_ends_the_work_and_keeps_what_was_said(
    window: OpenWindow, answering: Shown
) -> None:
    page = await (await window()).open("chat")
    await ask(page, QUESTION)
    await answering.fog.holding.wait()
    await page.get_by_role("button", name="Stop").click()

    await expect(page.get_by_text("stopped")).to_be_visible()
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert answering.fog.closed[-1] == answering.fog.submitted[-1].request_id
    await page.get_by_role("button", name="New chat").click()
    await expect(page.get_by_role("log").get_by_text(QUESTION)).to_have_count(0)


async def test_a_request_in_flight_is_drawn_with_its_phases(
    window: OpenWindow, answering: Shown
) -> None:
    chat = await (await window()).open("chat")
    await ask(chat, QUESTION)
    await answering.fog.holding.wait()
    request_id = answering.fog.submitted[-1].request_id
    answering.fog.stretches = {
        request_id: (Stretch("queue", 0.0, 0.2), Stretch("prefill", 0.2, 0.3))
    }
    shown = await window(NARROW)
    page = await shown.open("requests")

    flight = page.locator("svg.timeline").first
    await expect(flight.locator("rect.prefill").last).to_be_visible()
    await expect(flight.locator("text", has_text="anybody")).to_be_visible()
    assert QUESTION not in await page.content()
    answering.fog.go_on.set()
    await expect(page.get_by_text("No request is in flight.")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= NARROW
    assert shown.complaints == []


async def test_what_would_be_planned_is_shown_and_nothing_else_has_changed(
    window: OpenWindow, shown: Shown
) -> None:
    before = shown.fog.active
    shown.fog.found = ANSWER
    seen = await window(NARROW)
    page = await seen.open("what-if")
    await page.get_by_label("New device, like").fill("pi")
    await page.get_by_label("New device, like").press("Enter")

    await expect(page.locator('svg [data-device="pi-1"]')).to_be_visible()
    await expect(page.get_by_text("2 replicas on 3 devices")).to_be_visible()
    await expect(page.get_by_text("64 MiB")).to_be_visible()
    asked = shown.fog.asked[-1]
    assert [(each.id, each.like) for each in asked.add] == [("pi-1", "pi")]
    assert shown.fog.active == before
    assert await page.evaluate("document.documentElement.scrollWidth") <= NARROW
    assert seen.complaints == []


async def test_a_question_that_makes_no_sense_is_answered_in_words(
    window: OpenWindow, shown: Shown
) -> None:
    shown.fog.found = WhatIfAnswer(
        request_id="", finding=Finding.REFUSED, reason="add: no device 'abacus'"
    )
    page = await (await window()).open("what-if")
    await page.get_by_label("New device, like").fill("abacus")
    await page.get_by_role("button", name="Plan it").click()

    await expect(page.get_by_role("alert").get_by_text("no device 'abacus'")).to_be_visible()
