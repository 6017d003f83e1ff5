"""The dashboard as a person sees it, in Chromium."""

import itertools
from typing import Final, Literal

import pytest
from playwright.async_api import expect

from broker.control import DeviceState
from broker.plan import Role
from gateway.dashboard.pages import PAGES
from tests.gateway.dashboard.conftest import HEIGHT, NARROW, WIDE, OpenWindow, Shown
from tests.support.shown_fog import DEVICES, plan_of, replica

SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")

BROKEN_HEADS: Final = """() => {
  const lines = (head) => {
    const range = document.createRange();
    range.selectNodeContents(head);
    return range.getClientRects().length;
  };
  return [...document.querySelectorAll("th")].filter((h) => lines(h) > 1).map((h) => h.innerText);
}"""

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_every_page_opens_without_complaint_and_fetches_nothing_from_outside(
    window: OpenWindow,
) -> None:
    shown = await window()
    for each in PAGES:
        page = await shown.open(each.path)
        await expect(page.locator("h1")).to_have_text(each.title)
        await expect(page.get_by_role("status")).to_have_text("Prompts are answered.")
    assert shown.complaints == []
    assert shown.foreign == []


async def test_every_page_fits_a_phone_and_a_wide_window_and_follows_light_and_dark(
    window: OpenWindow,
) -> None:
    shown = await window()
    for each in PAGES:
        page = await shown.open(each.path)
        for width, scheme in itertools.product((NARROW, WIDE), SCHEMES):
            await page.set_viewport_size({"width": width, "height": HEIGHT})
            await page.emulate_media(color_scheme=scheme)
            await expect(page.locator("body")).to_contain_class(f"body--{scheme}")
            # Nothing is wider than the window, so nothing has to be scrolled to the side.
            await page.wait_for_function("w => document.body.scrollWidth <= w", arg=width)


async def test_no_word_of_a_table_is_broken_on_a_phone(window: OpenWindow) -> None:
    shown = await window(NARROW)
    for path in ("devices", "plans"):
        page = await shown.open(path)
        await expect(page.get_by_role("columnheader").first).to_be_visible()
        assert await page.evaluate(BROKEN_HEADS) == []


async def test_buttons_have_the_accent_whose_contrast_is_tested(window: OpenWindow) -> None:
    page = await (await window()).open("what-if")
    button = page.get_by_role("button", name="Plan it")
    for scheme, accent in zip(SCHEMES, ("rgb(47, 75, 199)", "rgb(157, 178, 255)"), strict=True):
        await page.emulate_media(color_scheme=scheme)
        await expect(button).to_have_css("background-color", accent)


async def test_the_fog_is_drawn_to_the_width_of_the_window(window: OpenWindow) -> None:
    page = await (await window(NARROW)).open()
    picture = page.locator("svg.fog-picture")
    for width, drawn in ((NARROW, "350"), (WIDE, "1400")):
        await page.set_viewport_size({"width": width, "height": HEIGHT})
        await expect(picture).to_have_attribute("width", drawn)
        await expect(picture.locator(".device")).to_have_count(len(DEVICES))


async def test_a_device_that_is_lost_turns_red(window: OpenWindow, shown: Shown) -> None:
    page = await (await window()).open()
    box = page.locator('[data-device="pi5-hall"]')
    await expect(box).to_contain_text("tokens/s")
    shown.fog.say("pi5-hall", DeviceState.LOST)
    await expect(box).to_have_class("device decode is-lost")
    await expect(box).to_contain_text("lost")
    await expect(page.get_by_text("incomplete", exact=True)).to_be_visible()


async def test_a_new_plan_is_drawn(window: OpenWindow, shown: Shown) -> None:
    page = await (await window()).open()
    await expect(page.get_by_text("prefill r-3f9a1c22d0")).to_be_visible()
    shown.fog.adopt(plan_of(2, replica("r-77aa00bb11", Role.BOTH, DEVICES[:4])))
    await expect(page.get_by_text("both r-77aa00bb11")).to_be_visible()
    await expect(page.get_by_text("prefill r-3f9a1c22d0")).to_be_hidden()
    await expect(page.get_by_text("2, active")).to_be_visible()
