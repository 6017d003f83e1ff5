"""Pictures of the dashboard for the README, of a fog that runs and is asked meanwhile.

    e2llm up                                       in another terminal
    python scripts/screenshots.py [--url http://127.0.0.1:8080] [--out docs/images]

Debian's Chromium takes them; what the pages show is measured, nothing is made up.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import Request, urlopen

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

MOST_BYTES: Final = 150_000
WARM_UP_MILLISECONDS: Final = 15_000


@dataclass(frozen=True)
class Shot:
    """One picture: a page in a window of a size, light or dark."""

    name: str
    page: str
    width: int
    height: int
    dark: bool = False


SHOTS: Final = (
    Shot("dashboard-fog", "", 1160, 400),
    Shot("dashboard-phone", "", 390, 844, dark=True),
    Shot("dashboard-requests", "requests", 1160, 720, dark=True),
    Shot("dashboard-devices", "devices", 1160, 900),
)


@contextmanager
def asked(url: str, num_clients: int = 6) -> Iterator[None]:
    """Ask a fog from several clients while the block lasts."""
    done = threading.Event()

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            question = f"What is {rng.randint(1, 99)} plus {rng.randint(1, 99)}?"
            body = {"messages": [{"role": "user", "content": question}], "max_tokens": 64}
            request = Request(
                f"{url}/v1/chat/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            try:
                urlopen(request, timeout=60).read()
            except URLError:
                done.wait(1)

    clients = [threading.Thread(target=ask, args=(seed,)) for seed in range(num_clients)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        done.set()
        for client in clients:
            client.join()


def take(browser: Browser, url: str, shot: Shot) -> bytes:
    """Return a picture as PNG with a palette, a third of its size without one."""
    window = browser.new_page(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme="dark" if shot.dark else "light",
    )
    window.goto(f"{url}/dashboard/{shot.page}")
    window.locator("h1").wait_for()
    window.wait_for_timeout(3000)
    raw = window.screenshot()
    window.close()
    packed = BytesIO()
    with Image.open(BytesIO(raw)) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
            packed, "PNG", optimize=True
        )
    return packed.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, asked(options.url):
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        browser.new_page().wait_for_timeout(WARM_UP_MILLISECONDS)
        for shot in SHOTS:
            picture = take(browser, options.url, shot)
            if len(picture) > MOST_BYTES:
                raise SystemExit(f"{shot.name} has {len(picture)} bytes, more than {MOST_BYTES}")
            (options.out / f"{shot.name}.png").write_bytes(picture)
            print(f"{shot.name}.png: {len(picture)} bytes")
        browser.close()


if __name__ == "__main__":
    main()
