"""The weights server: ranges for who has a signed URL, nothing for anybody else."""

import stat
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from gateway.weights import UrlSigner, WrongSignatureError, load_key, with_urls
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import BASE_URL, Api, settings_for

FILE = "model.safetensors"


@pytest.fixture
def api(folder: Path, tmp_path: Path) -> Api:
    return Api(FakeEngine(lambda generation: []), settings_for(folder, tmp_path))


def signed(api: Api, *, file: str = FILE, revision: str | None = None, seconds: int = 60) -> str:
    assert api.slot.served is not None
    revision = api.slot.served.manifest.revision if revision is None else revision
    return api.signer.url(revision, file, int(time.time()) + seconds).removeprefix(BASE_URL)


async def test_a_signed_url_gives_the_file(api: Api, folder: Path) -> None:
    response = await api.get(signed(api))
    assert response.status_code == 200
    assert response.content == (folder / FILE).read_bytes()
    assert response.headers["accept-ranges"] == "bytes"


async def test_each_tensor_can_be_read_by_its_range(api: Api, folder: Path) -> None:
    assert api.slot.served is not None
    content = (folder / FILE).read_bytes()
    for info in list(api.slot.served.manifest.tensors.values())[:5]:
        end = info.offset + info.num_bytes
        response = await api.get(signed(api), range=f"bytes={info.offset}-{end - 1}")
        assert response.status_code == 206
        assert response.headers["content-range"] == f"bytes {info.offset}-{end - 1}/{len(content)}"
        assert response.content == content[info.offset : end]


async def test_a_range_may_be_open_and_must_be_inside(api: Api, folder: Path) -> None:
    size = (folder / FILE).stat().st_size
    response = await api.get(signed(api), range=f"bytes={size - 5}-")
    assert response.content == (folder / FILE).read_bytes()[-5:]
    assert (await api.get(signed(api), range=f"bytes={size}-")).status_code == 416


async def test_head_tells_the_size(api: Api, folder: Path) -> None:
    async with api.client() as client:
        response = await client.head(signed(api))
    assert response.headers["content-length"] == str((folder / FILE).stat().st_size)


async def test_an_expired_url_is_refused(api: Api) -> None:
    response = await api.get(signed(api, seconds=-1))
    assert response.status_code == 403
    assert "expired" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("expires=", "expires=9"),
        ("signature=", "signature=0"),
        ("signature=", "signature=%C3%BC"),
        ("expires=", "expires=x"),
        ("expires=", "expires=-"),
        ("expires=", "nothing="),
        ("signature=", "nothing="),
        (FILE, "config.json"),
        ("/weights/", "/weights/0"),
    ],
)
async def test_a_changed_url_is_refused(api: Api, old: str, new: str) -> None:
    url = signed(api)
    assert old in url
    response = await api.get(url.replace(old, new, 1))
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "wrong_signature"


async def test_a_url_signed_with_another_key_is_refused(api: Api) -> None:
    assert api.slot.served is not None
    other = UrlSigner(b"x" * 32, BASE_URL)
    url = other.url(api.slot.served.manifest.revision, FILE, int(time.time()) + 60)
    assert (await api.get(url.removeprefix(BASE_URL))).status_code == 403


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "..", "absent.safetensors"]
)
async def test_only_files_of_the_manifest_are_given(api: Api, file: str) -> None:
    assert (await api.get(signed(api, file=file))).status_code == 404


async def test_another_revision_is_not_found(api: Api) -> None:
    assert (await api.get(signed(api, revision="0" * 20))).status_code == 404


def test_the_manifests_urls_are_good_until_they_expire(api: Api) -> None:
    assert api.slot.served is not None
    manifest = with_urls(api.slot.served.manifest, api.signer, expires=1000)
    (url,) = manifest.urls[FILE]
    query = dict(parse_qsl(urlsplit(url).query))
    assert manifest.expires_at == 1000
    api.signer.check(manifest.revision, FILE, query, now_seconds=999)
    with pytest.raises(WrongSignatureError, match="expired"):
        api.signer.check(manifest.revision, FILE, query, now_seconds=1000)


def test_the_key_between_nodes_is_a_new_one_with_every_manifest(api: Api) -> None:
    assert api.slot.served is not None
    manifest = api.slot.served.manifest
    keys = {with_urls(manifest, api.signer, expires).tensor_key for expires in (1000, 1000, 2000)}
    assert len(keys) == 2
    assert all(len(key) == 64 for key in keys)
    other = UrlSigner(b"x" * 32, BASE_URL)
    assert with_urls(manifest, other, expires=1000).tensor_key not in keys


def test_the_key_is_made_once_and_is_nobody_elses(tmp_path: Path) -> None:
    key = load_key(tmp_path / "state")
    assert len(key) == 32
    assert load_key(tmp_path / "state") == key
    assert load_key(tmp_path / "other") != key
    assert stat.S_IMODE((tmp_path / "state" / "weights.key").stat().st_mode) == 0o600
