"""Colours of the dashboard: every text can be read on what is behind it, light and dark."""

import re
from pathlib import Path
from typing import Final

import pytest

import gateway.dashboard

STYLE: Final = (Path(gateway.dashboard.__file__).parent / "style.css").read_text("utf-8")
LEAST_CONTRAST: Final = 4.5
"""Of WCAG 2.2 for text, level AA."""
PAIRS: Final = (
    *(
        (text, ground)
        for text in ("text", "quiet", "wrong", "accent")
        for ground in ("ground", "panel")
    ),
    *(
        (text, f"{role}-fill")
        for text in ("text", "quiet")
        for role in ("prefill", "decode", "both", "idle")
    ),
    *((role, "panel") for role in ("prefill", "decode", "both")),
    ("wrong", "wrong-fill"),
    ("panel", "accent"),
)


def colours(selector: str) -> dict[str, str]:
    """Return the variables that a rule of the style sheet sets."""
    rule = re.search(rf"^{re.escape(selector)} {{(.*?)^}}", STYLE, re.DOTALL | re.MULTILINE)
    assert rule is not None
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", rule[1]))


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2."""
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("selector", ["body", "body.body--dark"])
@pytest.mark.parametrize(("text", "ground"), PAIRS)
def test_text_stands_out_from_its_ground(selector: str, text: str, ground: str) -> None:
    known = colours(selector)
    assert contrast(known[text], known[ground]) >= LEAST_CONTRAST


def test_light_and_dark_have_the_same_variables() -> None:
    assert colours("body").keys() == colours("body.body--dark").keys()


def test_black_on_white_has_the_contrast_that_the_standard_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
