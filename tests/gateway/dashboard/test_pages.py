"""The dashboard as a person sees it, in Chromium."""

import pytest
from playwright.async_api import expect

from broker.control import DeviceState
from broker.plan import Role
from gateway.dashboard.pages import PAGES
from tests.gateway.dashboard.conftest import NARROW, WIDE, OpenWindow, Shown
from tests.support.shown_fog import DEVICES, plan_of, replica

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [NARROW, WIDE])
async def test_every_page_opens_without_complaint_and_fetches_nothing_from_outside(
    window: OpenWindow, width: int, dark: bool
) -> None:
    shown = await window(width, dark=dark)
    for each in PAGES:
        page = await shown.open(each.path)
        await expect(page.locator("h1")).to_have_text(each.title)
        await expect(page.locator("body")).to_have_class("body--dark" if dark else "body--light")
        # Nothing is wider than the window, so nothing has to be scrolled to the side.
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.complaints == []
    assert shown.foreign == []


async def test_the_fog_is_drawn_to_the_width_of_the_window(window: OpenWindow) -> None:
    for width in (NARROW, WIDE):
        page = await (await window(width)).open()
        picture = page.locator("svg.fog-picture")
        await expect(picture).not_to_have_attribute("width", "340")
        drawn = int(await picture.get_attribute("width") or 0)
        assert 0.85 * width <= drawn <= width
        assert await picture.locator(".device").count() == len(DEVICES)


async def test_a_device_that_is_lost_turns_red(window: OpenWindow, shown: Shown) -> None:
    page = await (await window()).open()
    box = page.locator('[data-device="pi5-hall"]')
    await expect(box).to_contain_text("tokens/s")
    shown.fog.say("pi5-hall", DeviceState.LOST)
    await expect(box).to_have_class("device decode is-lost")
    await expect(box).to_contain_text("lost")
    await expect(page.get_by_text("incomplete:")).to_be_visible()


async def test_a_new_plan_is_drawn(window: OpenWindow, shown: Shown) -> None:
    page = await (await window()).open()
    await expect(page.get_by_text("prefill r-3f9a1c22d0")).to_be_visible()
    shown.fog.adopt(plan_of(2, replica("r-77aa00bb11", Role.BOTH, DEVICES[:4])))
    await expect(page.get_by_text("both r-77aa00bb11")).to_be_visible()
    await expect(page.get_by_text("prefill r-3f9a1c22d0")).to_be_hidden()
    await expect(page.get_by_text("2, active")).to_be_visible()
