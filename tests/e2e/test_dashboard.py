"""The dashboard of a gateway as `e2llm up` starts it, as far as no browser is needed."""

from urllib.request import Request, urlopen

from tests.support.running_fog import RunningFog


def page(url: str) -> tuple[str, str]:
    """Return where a browser ends that opens an address, and the page there."""
    request = Request(url, headers={"accept": "text/html"})
    with urlopen(request, timeout=60) as answer:
        return answer.url, answer.read().decode()


def test_a_browser_that_opens_the_address_of_the_fog_sees_its_devices(fog: RunningFog) -> None:
    address, text = page(fog.url)
    assert address == f"{fog.url}/dashboard/"
    for device in fog.devices():
        assert f"devices?device={device}" in text


def test_the_page_of_a_device_has_plots_of_what_it_said(fog: RunningFog) -> None:
    device = next(iter(fog.devices()))

    def has_curve() -> bool:
        return "curve" in page(f"{fog.url}/dashboard/devices?device={device}")[1]

    fog.until(has_curve, f"{device} is plotted")
