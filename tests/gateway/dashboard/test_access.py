"""Keys, keyboard, themes and what a person may do, in Chromium."""

import time

import pytest
from playwright.async_api import expect

from broker.control import DeviceControl, Placement
from gateway.access.keys import Scope, make_key, ring_of
from gateway.dashboard.pages import PAGES
from tests.gateway.dashboard.conftest import OpenWindow, Shown

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_where_keys_are_needed_the_page_asks_for_one_and_keeps_it_off_the_address(
    window: OpenWindow, shown: Shown
) -> None:
    text, key = make_key("kitchen", Scope.USER, time.time())
    shown.api.keys.ring = ring_of([key])
    page = await (await window()).open()
    await expect(page.get_by_text("asks for an API key")).to_be_visible()
    await expect(page.locator("svg.fog-picture")).to_have_count(0)
    await page.get_by_label("API key").fill("e2llm-123-wrong")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("Incorrect API key")
    await page.get_by_label("API key").fill(text)
    await page.keyboard.press("Enter")
    await expect(page.locator("svg.fog-picture")).to_be_visible()
    assert text not in page.url
    state = shown.api.settings.state / "dashboard"
    stored = [path.read_text() for path in state.rglob("*") if path.is_file()]
    assert not any(text in content for content in stored)


async def test_a_key_that_is_revoked_closes_the_page_that_it_opened(
    window: OpenWindow, shown: Shown
) -> None:
    now = time.time()
    (_, admin), (text, key) = (make_key(name, Scope.ADMIN, now) for name in ("first", "second"))
    shown.api.keys.ring = ring_of([admin, key])
    page = await (await window()).open()
    await page.get_by_label("API key").fill(text)
    await page.get_by_role("button", name="Open the dashboard").click()
    await expect(page.locator("svg.fog-picture")).to_be_visible()
    shown.api.keys.ring = shown.api.keys.ring.revoked(key.id, now)
    await expect(page.get_by_text("asks for an API key")).to_be_visible()


async def test_a_user_sees_a_device_and_an_admin_asks_something_of_it(
    window: OpenWindow, shown: Shown
) -> None:
    shown.fog.controls = {"jetson": DeviceControl()}
    page = await (await window()).open("devices?device=jetson")
    await page.get_by_role("button", name="Cordon", exact=True).click()
    await expect(page.get_by_text("The planner is asked to cordon jetson.")).to_be_visible()
    assert shown.fog.controls["jetson"].placement is Placement.CORDONED
    text, key = make_key("guest", Scope.USER, time.time())
    shown.api.keys.ring = ring_of([key])
    await expect(page.get_by_text("asks for an API key")).to_be_visible()
    await page.get_by_label("API key").fill(text)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="jetson")).to_be_visible()
    await expect(page.get_by_role("button", name="Cordon", exact=True)).to_have_count(0)


async def test_the_keyboard_reaches_every_page_and_every_device(window: OpenWindow) -> None:
    page = await (await window()).open()
    for each in PAGES:
        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_have_text(each.title)
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text(PAGES[-1].title)
    await page.go_back()
    await page.locator('a:has([data-device="laptop"])').focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="laptop")).to_be_visible()


async def test_the_theme_is_chosen_by_a_button_and_kept(window: OpenWindow) -> None:
    page = await (await window()).open()
    body = page.locator("body")
    await expect(body).to_contain_class("body--light")
    for name in ("light", "dark"):
        await page.get_by_role("button", name="Theme").click()
        await expect(page.get_by_role("button", name=f"Theme: {name}")).to_be_visible()
    await expect(body).to_contain_class("body--dark")
    await page.reload()
    await expect(body).to_contain_class("body--dark")
