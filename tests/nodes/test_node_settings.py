"""A node joins with an id, a broker address and a credential, nothing else."""

from pathlib import Path

import pytest

from broker.address import listening_address
from broker.settings import SettingsError, read_settings
from nodes.settings import PREFIX, MemoryOffer, NodeSettings

MINIMAL = {"E2LLM_NODE_ID": "pi", "E2LLM_BROKER": "mqtt://pi:secret@10.0.0.1:1884"}


def read(**variables: str) -> NodeSettings:
    named = {f"{PREFIX}{name.upper()}": value for name, value in variables.items()}
    return read_settings(NodeSettings, PREFIX, {**MINIMAL, **named})


def test_an_id_and_a_broker_with_credential_are_enough() -> None:
    settings = read()
    assert (settings.id, settings.site, settings.slowdown) == ("pi", "local", 1.0)
    assert (settings.address.host, settings.address.port) == ("10.0.0.1", 1884)
    assert settings.offer is None


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(read())


@pytest.mark.parametrize("missing", sorted(MINIMAL))
def test_a_missing_setting_is_named(missing: str) -> None:
    environ = {key: value for key, value in MINIMAL.items() if key != missing}
    with pytest.raises(SettingsError, match=missing):
        read_settings(NodeSettings, PREFIX, environ)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"slowdown": "0.5"}, "at least 1"),
        ({"slowdown": "nan"}, "at least 1"),
        ({"threads": "0"}, "threads"),
        ({"speculation": "-1"}, "from 0 to 64"),
        ({"memory": "lots"}, "share"),
        ({"memory": "3 GiBs"}, "unknown unit"),
        ({"link_bytes_per_second": "0"}, "more than 0"),
        ({"link_delay_seconds": "-1"}, "at least 0"),
        ({"telemetry_seconds": "0"}, "more than 0"),
        ({"idle_watts": "3"}, "both idle_watts and busy_watts"),
        ({"idle_watts": "9", "busy_watts": "3"}, "0 <= idle <= busy"),
        ({"id": "a/b"}, "MQTT topic"),
        ({"broker_address": "x"}, "unknown setting"),
    ],
)
def test_a_malformed_setting_stops_the_node_and_says_why(
    variables: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        read(**variables)


def test_the_credential_of_another_device_is_refused_before_the_broker_does() -> None:
    environ = {**MINIMAL, "E2LLM_BROKER": "mqtt://other:secret@10.0.0.1"}
    with pytest.raises(SettingsError, match="'other' is not the device id 'pi'"):
        read_settings(NodeSettings, PREFIX, environ)


@pytest.mark.parametrize(
    ("text", "offer"),
    [
        ("60 %", MemoryOffer(share=0.6)),
        ("12.5%", MemoryOffer(share=0.125)),
        ("1000000", MemoryOffer(num_bytes=1_000_000)),
        ("2 GiB", MemoryOffer(num_bytes=2 << 30)),
        ("1.5 MB", MemoryOffer(num_bytes=1_500_000)),
    ],
)
def test_memory_is_a_share_or_a_size(text: str, offer: MemoryOffer) -> None:
    assert MemoryOffer.parse(text) == offer


def test_nodes_of_one_host_share_a_cache_unless_told_otherwise(tmp_path: Path) -> None:
    assert read().cache_folder(tmp_path) == tmp_path / "e2llm"
    assert read(state="/var/pi").cache_folder(tmp_path) == Path("/var/pi/cache")
    assert read(state="/var/pi", cache="/shared").cache_folder(tmp_path) == Path("/shared")


def test_what_weights_take_on_disk_is_limited_by_size_or_share() -> None:
    assert read().cache_limit_bytes(1000) == 500
    assert read(cache_limit="10 %").cache_limit_bytes(1000) == 100
    assert read(cache_limit="2 KiB").cache_limit_bytes(1000) == 2048
    with pytest.raises(ValueError, match="cache_limit 'much'"):
        read(cache_limit="much")


@pytest.mark.parametrize(
    ("text", "address"),
    [("0.0.0.0:8090", ("0.0.0.0", 8090)), ("[::]:0", ("::", 0)), ("attic:1", ("attic", 1))],
)
def test_an_address_to_serve_on_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert listening_address(text, "serve") == address
    assert read(serve=text).serve == text


@pytest.mark.parametrize("text", ["8090", ":8090", "attic:", "attic:http", "attic:70000"])
def test_another_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address and port"):
        read(serve=text)


def test_a_url_to_serve_under_needs_an_address_to_serve_on() -> None:
    with pytest.raises(ValueError, match="nobody would answer"):
        read(serve_url="http://attic:8090")
