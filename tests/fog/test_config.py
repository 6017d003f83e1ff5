"""`fog.toml`: what the default says, and that every mistake is named with its line and key."""

from pathlib import Path

import pytest

from broker.control import OwnerRules
from broker.plan import LayerRange, Role
from broker.settings import read_settings
from fog.config import DEFAULT_FOG, demand_warning, load_config, parse_config
from fog.quantities import (
    Memory,
    format_bytes,
    format_seconds,
    parse_bytes_per_second,
    parse_memory,
    parse_seconds,
)
from fog.settable import gateway_settable, planner_settable
from fog.tomlreader import ConfigError
from nodes.settings import PREFIX, NodeSettings
from planner.live.inputs import owner_of
from planner.owner import FREE, Owner

FILE = Path("my-fog.toml")
DEVICE = '[[device]]\nid = "pi"\nslowdown = 2\nmodel_memory = "60 %"\n'


def error_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, FILE, planner=planner_settable(), gateway=gateway_settable())
    return str(caught.value)


def test_the_default_fog_has_six_unequal_devices_none_of_which_can_hold_a_model() -> None:
    config = load_config(DEFAULT_FOG)
    assert len(config.devices) == 6
    assert len({device.slowdown for device in config.devices}) == 6
    offers = [device.model_memory for device in config.devices]
    shares = [offer.share or 1 for offer in offers if offer is not None]
    assert len(shares) == 6
    assert max(shares) < 1
    # Room for a prefill and a decode replica beside each other.
    assert sum(shares) > 2


def test_the_default_fog_runs_on_time_on_two_cores() -> None:
    config = load_config(DEFAULT_FOG)
    assert config.demand <= 1.2
    assert demand_warning(config, num_cores=2) is None


def test_a_fog_that_asks_for_too_much_is_warned_about_with_numbers() -> None:
    config = parse_config(DEVICE + DEVICE.replace('"pi"', '"pj"'), FILE)
    assert demand_warning(config, num_cores=2) is None
    warning = demand_warning(config, num_cores=1)
    assert warning is not None
    assert "1.00" in warning
    assert "0.60" in warning
    assert "1.7 times" in warning


def test_every_value_is_read_in_its_unit() -> None:
    text = DEVICE + 'link_delay = "5 ms"\nlink_rate = "100 Mbit/s"\n[planner]\nmin_tps = 4\n'
    config = parse_config(text, FILE)
    (device,) = config.devices
    assert device.id == "pi"
    assert device.slowdown == 2
    assert device.model_memory == Memory(share=0.6)
    assert device.link_delay_seconds == pytest.approx(0.005)
    assert device.link_bytes_per_second == pytest.approx(12_500_000)
    assert config.planner == {"min_tps": "4"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DEVICE + "slowdwn = 3\n", "my-fog.toml:5: device[0].slowdwn: unknown key; did you mean"),
        ('sitte = "a"\n' + DEVICE, "my-fog.toml:1: sitte: unknown key; did you mean 'site'?"),
        (DEVICE + "[planner]\nmin_tsp = 1\n", "my-fog.toml:6: planner.min_tsp: unknown key; did"),
        ("# none\n", "my-fog.toml:1: has no device"),
        ("[device]\nid = 1\n", "my-fog.toml:1: device: write each device as its own [[device]]"),
        ("\n[[device]]\nslowdown = 2\n", "my-fog.toml:2: device[0]: needs the key 'id'"),
        (DEVICE + DEVICE, "my-fog.toml:6: device[1].id: 'pi' is already the device of line 2"),
        (DEVICE.replace("pi", "planner"), "my-fog.toml:2: device[0].id: 'planner' is the name of"),
        (DEVICE.replace("pi", "app"), "my-fog.toml:2: device[0].id: 'app' is the name of"),
        (DEVICE.replace("pi", "a/b"), "my-fog.toml:2: device[0].id: 'a/b' cannot name a device"),
        (DEVICE.replace("= 2", "= 0"), "my-fog.toml:3: device[0].slowdown: must be at least 1"),
        (DEVICE.replace("= 2", "= -3"), "my-fog.toml:3: device[0].slowdown: must be at least 1"),
        (DEVICE.replace("= 2", "= nan"), "my-fog.toml:3: device[0].slowdown: must be at least 1"),
        (DEVICE.replace("= 2", "= true"), "my-fog.toml:3: device[0].slowdown: must be a number"),
        (DEVICE.replace("60 %", "sixty"), "my-fog.toml:4: device[0].model_memory: 'sixty' is not"),
        (DEVICE.replace("60 %", "-60 %"), "my-fog.toml:4: device[0].model_memory: must be greater"),
        (DEVICE.replace("60 %", "60"), "my-fog.toml:4: device[0].model_memory: '60' has no unit"),
        (DEVICE.replace('"60 %"', "100"), "my-fog.toml:4: device[0].model_memory: 100 has no unit"),
        (DEVICE.replace('"60 %"', "1.5"), '1.5 has no unit; write a share like "60 %" or a size'),
        (DEVICE.replace('"60 %"', "true"), "device[0].model_memory: True is not memory"),
        (DEVICE.replace("60 %", "2 gib"), "unknown unit 'gib' in '2 gib'; did you mean 'GiB'?"),
        (DEVICE.replace("60 %", "2 potatoes"), "unknown unit 'potatoes' in '2 potatoes'; known: %"),
        (DEVICE + "link_delay = 5\n", "my-fog.toml:5: device[0].link_delay: expected text with a"),
        (DEVICE + 'link_delay = "-5 ms"\n', "device[0].link_delay: must not be negative"),
        (
            DEVICE + 'share = "140 %"\n',
            "device[0].share: share '140 %' is not a part of the device",
        ),
        (DEVICE + "share = 0.4\n", "my-fog.toml:5: device[0].share: share '0.4' is not a part"),
        (DEVICE + 'quiet_hours = "late"\n', "device[0].quiet_hours: quiet hours 'late' are not"),
        (DEVICE + 'phases = ["both"]\n', "device[0].phases: must be"),
        (DEVICE + 'text = "no"\n', "device[0].text: must be true or false"),
        (DEVICE + 'layers = "4-2"\n', "device[0].layers: layers '4-2' are not a first and a last"),
        (DEVICE + 'link_rate = "0 bit/s"\n', "device[0].link_rate: must be greater than 0"),
        (DEVICE + 'link_rate = "5 ms"\n', "device[0].link_rate: unknown unit 'ms'"),
        ('site = "a/b"\n' + DEVICE, "my-fog.toml:1: site: 'a/b' cannot be used in an MQTT topic"),
        ("site = 'a'\nplanner = 3\n" + DEVICE, "my-fog.toml:2: planner: write the settings"),
        (DEVICE + "[planner]\nmin_tps = 'x'\n", "my-fog.toml:6: planner.min_tps: E2LLM_PLANNER"),
        (DEVICE + "[planner]\nlook_seconds = 0\n", "my-fog.toml:6: planner.look_seconds: E2LLM"),
        (DEVICE + "[planner]\nredis = 'x'\n", "my-fog.toml:6: planner.redis: unknown key"),
        (DEVICE + "[gateway]\nqueue_limit = 0\n", "my-fog.toml:6: gateway.queue_limit: E2LLM_"),
        (DEVICE + "[planner]\nmin_tps = [1]\n", "my-fog.toml:6: planner.min_tps: must be a number"),
        ("site = 'a'\nsite = 'b'\n", "my-fog.toml:2: not valid TOML: Cannot overwrite a value"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(text: str, expected: str) -> None:
    assert expected in error_of(text)


OWNED = """share = "40 %"
quiet_hours = "22:00-07:00"
phases = ["decode"]
text = false
layers = "2-3"
"""


def test_what_an_owner_allows_reaches_the_node_and_a_planner_without_one() -> None:
    (device,) = parse_config(DEVICE + OWNED, Path("my-fog.toml")).devices
    node = read_settings(
        NodeSettings,
        PREFIX,
        {"E2LLM_BROKER": "mqtt://h", "E2LLM_NODE_ID": "pi", **device.owner.environment},
    )
    assert node.owner(3600) == OwnerRules(
        share=0.4,
        quiet_hours="22:00-07:00",
        utc_offset_seconds=3600,
        phases=["decode"],
        text=False,
        layers=(2, 4),
    )
    planned = owner_of(device.owner.rules)
    assert planned == Owner(frozenset({Role.DECODE}), False, LayerRange(2, 4), 0.4)


def test_a_device_without_limits_sets_nothing() -> None:
    (device,) = parse_config(DEVICE, Path("my-fog.toml")).devices
    assert device.owner.environment == {}
    assert owner_of(device.owner.rules) == FREE


def test_a_key_is_found_behind_comments_and_multi_line_strings() -> None:
    text = '# slowdwn = 1\nsite = """\nslowdwn = 1\n"""\n' + DEVICE + "slowdwn = 1\n"
    assert error_of(text).startswith("my-fog.toml:9: device[0].slowdwn: unknown key")
    quoted = DEVICE + '"link delay" = "5 ms"\n'
    assert error_of(quoted).startswith("my-fog.toml:5: device[0].link delay: unknown key")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load_config(tmp_path / "absent.toml")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'site = "caf\xe9"')
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(latin)


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("60 %", Memory(share=0.6)),
        ("60%", Memory(share=0.6)),
        ("2 GiB", Memory(num_bytes=2 * 1024**3)),
        ("1.5 MB", Memory(num_bytes=1_500_000)),
        ("4096 B", Memory(num_bytes=4096)),
    ],
)
def test_memory_is_a_share_or_a_size(text: str, memory: Memory) -> None:
    assert parse_memory(text) == memory


def test_memory_is_handed_to_a_node_as_a_share_or_in_bytes() -> None:
    assert str(parse_memory("62.5 %")) == "62.5 %"
    assert str(parse_memory("2 GiB")) == "2147483648"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DEVICE.replace('"pi"', '"pi'), '2: not valid TOML: a quote has no partner: id = "pi'),
        (DEVICE.replace('"pi"', 'pi"'), '2: not valid TOML: a quote has no partner: id = pi"'),
        (DEVICE.replace('"60 %"\n', '"60 %'), "4: not valid TOML: a quote has no partner: model"),
        (
            DEVICE.replace('"pi"', "pi"),
            "2: not valid TOML: Invalid value (text stands in quotes, a",
        ),
        (
            DEVICE.replace('"60 %"', "60 %"),
            "4: not valid TOML: Expected newline or end of document after a statement (text stands",
        ),
        (DEVICE.replace('"pi"', '"it\'s" x'), "2: not valid TOML: Expected newline or end of docu"),
        (DEVICE.replace("= 2", "2 # isn't"), "3: not valid TOML: Expected '=' after a key"),
        ('site = "a"\nx = """b\nc = 1\n', '2: not valid TOML: Unterminated string: x = """b'),
        ("x = [\n1,\n2\n", "1: not valid TOML: Unclosed array: x = ["),
        ("[x\n", "1: not valid TOML: Expected ']' at the end of a table declaration: [x"),
        (f'x = "{"a" * 99}', f'1: not valid TOML: a quote has no partner: x = "{"a" * 55} ...'),
    ],
)
def test_what_is_not_toml_is_shown_with_its_line(text: str, expected: str) -> None:
    assert error_of(text).startswith(f"my-fog.toml:{expected}")


def test_delays_and_rates_become_seconds_and_bytes() -> None:
    assert parse_seconds("250 us") == pytest.approx(0.00025)
    assert parse_seconds("0 s") == 0
    assert parse_bytes_per_second("1 Gbit/s") == pytest.approx(125e6)
    assert parse_bytes_per_second("2 MiB/s") == pytest.approx(2 * 1024**2)


def test_quantities_are_printed_for_people() -> None:
    assert format_bytes(512) == "512 B"
    assert format_bytes(9.4 * 1024**2) == "9.4 MiB"
    assert format_seconds(0.0125) == "12.5 ms"
    assert format_seconds(0.25) == "250 ms"
    assert format_seconds(3.21) == "3.2 s"
