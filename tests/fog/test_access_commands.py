"""API keys on the command line: making and using them, and where a key comes from."""

import json
from pathlib import Path

import pytest

from fog.account import Account, AccountError, connect, load_account
from fog.client import DEFAULT_URL
from tests.fog.fake_gateway import KEYS, REQUESTS, Behaviour, serve
from tests.support.command_line import e2llm

KEY = "e2llm-1-secret"


def configured(folder: Path, text: str) -> dict[str, str]:
    path = folder / "e2llm" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return {"XDG_CONFIG_HOME": str(folder)}


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    behaviour = Behaviour()
    with serve(behaviour) as url:
        made = e2llm(
            "key", "create", "lamp", "--requests-per-minute", "60", "--expires", "7d", "--url", url
        )
        listed = e2llm("key", "list", "--url", url)
        as_json = e2llm("key", "list", "--url", url, "--json", "-")
        ended = e2llm("key", "revoke", "1", "--url", url)
        unknown = e2llm("key", "revoke", "2", "--url", url)
    assert made.stdout == f"{KEY}\n"
    (_, wanted), *_ = behaviour.asked
    assert wanted["requests_per_minute"] == 60
    assert wanted["expires_seconds"] == 7 * 86400
    assert wanted["scope"] == "user"
    assert "lamp [kitchen]" in listed.stdout
    assert json.loads(as_json.stdout) == KEYS
    assert "is revoked" in ended.stdout
    assert (unknown.returncode, unknown.stderr) == (1, "e2llm: the fog refused: no such key\n")


def test_a_token_is_good_for_an_hour_unless_told_otherwise() -> None:
    behaviour = Behaviour()
    with serve(behaviour) as url:
        made = e2llm("token", "create", "--device", "pi", "--url", url)
    assert made.stdout == f"{KEY}\n"
    (_, wanted), *_ = behaviour.asked
    assert (wanted["scope"], wanted["device"], wanted["expires_seconds"]) == ("join", "pi", 3600)


def test_requests_are_a_table_or_json() -> None:
    with serve() as url:
        table = e2llm("requests", "--url", url)
        as_json = e2llm("requests", "--url", url, "--json", "-")
    assert "chatcmpl-7" in table.stdout
    assert json.loads(as_json.stdout) == REQUESTS


def test_a_gateway_that_wants_a_key_gets_that_of_option_environment_or_file(
    tmp_path: Path,
) -> None:
    with serve(Behaviour(key=KEY)) as url:
        environ = configured(tmp_path, f'url = "{url}/"\nkey = "{KEY}"\n')
        without = e2llm("devices", "--url", url, environ={"XDG_CONFIG_HOME": str(tmp_path / "x")})
        option = e2llm("devices", "--url", url, "--key", KEY)
        variable = e2llm("devices", "--url", url, environ={"E2LLM_API_KEY": KEY})
        file = e2llm("devices", environ=environ)
        chosen = e2llm("devices", "--key", "other", environ=environ)
    assert without.returncode == 1
    assert "E2LLM_API_KEY" in without.stderr
    assert [each.returncode for each in (option, variable, file, chosen)] == [0, 0, 0, 1]


def test_the_key_in_the_file_is_sent_to_no_other_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in configured(tmp_path, f'url = "http://fog"\nkey = "{KEY}"\n').items():
        monkeypatch.setenv(name, value)
    assert connect(None, None).key == KEY
    assert connect("http://fog", None).key == KEY
    assert connect("http://elsewhere", None).key is None
    assert connect("http://elsewhere", "mine").key == "mine"


@pytest.mark.parametrize("text", ["key = ", "key = 7", 'kee = "x"'])
def test_a_file_that_says_something_else_is_named(tmp_path: Path, text: str) -> None:
    environ = configured(tmp_path, text)
    with pytest.raises(AccountError, match=r"config\.toml"):
        load_account(environ)
    assert e2llm("devices", environ=environ).returncode == 2


def test_without_a_file_it_is_this_machine_and_no_key(tmp_path: Path) -> None:
    assert load_account({"XDG_CONFIG_HOME": str(tmp_path)}) == Account(DEFAULT_URL, None)


def test_a_key_is_written_where_no_gateway_runs(tmp_path: Path) -> None:
    user = e2llm("key", "create", "lamp", "--state", str(tmp_path))
    made = e2llm("key", "create", "me", "--scope", "admin", "--state", str(tmp_path))
    absent = e2llm("key", "create", "me", "--scope", "admin", "--state", str(tmp_path / "absent"))
    assert "first key must have the scope admin" in user.stderr
    assert made.stdout.startswith("e2llm-")
    assert made.stdout.strip() not in (tmp_path / "keys.json").read_text()
    assert (user.returncode, made.returncode, absent.returncode) == (2, 0, 2)
