"""What could happen to a fog, by the command line's words."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fog.changes import ChangeError, Loss, parse_changes
from fog.config import load_config
from fog.quantities import Memory
from tests.fog.what_if_rig import CATALOGUE, FOG


def test_changes_are_read(fog_file: Callable[[str], Path]) -> None:
    config = load_config(fog_file(FOG))

    changes = parse_changes(
        config,
        CATALOGUE,
        add=["pi:raspberry-pi-5-8gb", "twin:small"],
        link=["big:20ms,50Mbit/s", "pi:5ms"],
        lose=["small@5min", "pi@30s"],
    )

    after = {device.id: device for device in changes.apply(config.devices)}
    assert set(after) == {"big", "small", "pi", "twin"}
    assert (after["twin"].slowdown, after["twin"].model_memory) == (4.0, Memory(share=0.6))
    assert after["big"].link_delay_seconds == pytest.approx(0.02)
    assert after["big"].link_bytes_per_second == pytest.approx(50e6 / 8)
    assert after["pi"].link_delay_seconds == pytest.approx(0.005)
    assert changes.losses == (Loss("pi", 30.0), Loss("small", 300.0))
    assert changes.texts() == [
        "pi (like raspberry-pi-5-8gb) is added",
        "twin (like small) is added",
        "the link of big has 20 ms one way and 50 Mbit/s",
        "the link of pi has 5 ms one way",
        "pi is lost at 30 s",
        "small is lost at 5 min",
    ]


def test_all_stands_for_every_device_unless_one_has_this_name(
    fog_file: Callable[[str], Path],
) -> None:
    config = load_config(fog_file(FOG))
    named = load_config(fog_file(FOG.replace('"big"', '"all"')))

    every = parse_changes(config, CATALOGUE, add=["twin:small"], link=["all:20ms"])
    one = parse_changes(named, CATALOGUE, link=["all:20ms"])

    delays = {d.id: d.link_delay_seconds for d in every.apply(config.devices)}
    assert delays == {"big": 0.02, "small": 0.02, "twin": 0.02}
    rates = {d.id: d.link_bytes_per_second for d in every.apply(config.devices)}
    assert rates == {"big": None, "small": 12.5e6, "twin": 12.5e6}
    assert [d.link_delay_seconds for d in one.apply(named.devices)] == [0.02, 0.001]


@pytest.mark.parametrize(
    ("option", "text", "match"),
    [
        ("add", "pi", "has no numbers; write ID:DEVICE"),
        ("add", "pi:", "has no numbers"),
        ("add", "pi:smal", "did you mean 'small'"),
        ("add", "pi:raspberry-pi-5", "did you mean 'raspberry-pi-5-8gb'"),
        ("add", "big:raspberry-pi-5-8gb", "already"),
        ("add", "a b:raspberry-pi-5-8gb", "cannot name a device"),
        ("link", "big:", "DELAY,RATE"),
        ("link", "big:1ms,2ms", "one delay and one rate"),
        ("link", "big:nan ms", "not a number"),
        ("link", "big:1e300 GB/s", "too large"),
        ("link", "big:0 Mbit/s", "greater than 0"),
        ("link", "bigg:20ms", "did you mean 'big'"),
        ("link", "big:20 parsecs", "unknown unit"),
        ("link", "big:-1ms", "negative"),
        ("lose", "big", "ID@TIME"),
        ("lose", "big@soon", "ID@TIME"),
        ("lose", "big@-5s", "ID@TIME"),
        ("lose", "big@1e999s", "ID@TIME"),
        ("lose", "nobody@5s", "no device"),
    ],
)
def test_a_change_that_is_written_wrongly_is_named(
    fog_file: Callable[[str], Path], option: str, text: str, match: str
) -> None:
    config = load_config(fog_file(FOG))

    with pytest.raises(ChangeError, match=match) as caught:
        parse_changes(config, CATALOGUE, **{option: [text]})

    assert f"--{option} {text}" in str(caught.value)


def test_a_device_is_lost_only_once(fog_file: Callable[[str], Path]) -> None:
    config = load_config(fog_file(FOG))

    with pytest.raises(ChangeError, match="--lose big@9s: big is lost already"):
        parse_changes(config, CATALOGUE, lose=["big@5s", "big@9s"])
