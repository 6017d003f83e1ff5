"""Tensors from a hub: ranges through redirects, and the token only where it belongs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from broker.control import HubPlace, ModelManifest
from nodes.checkpoint import MissingTensorError, TensorSource
from nodes.ranges import RangeReader
from nodes.supply import HubAccess, Supply
from tests.support.checkpoints import manifest_of, write_checkpoint
from tests.support.hub_server import COMMIT, TOKEN, Hub, hub_server
from tests.support.range_server import Answer, serve_ranges
from tests.support.sharing import manifest_elsewhere, read_all
from tests.support.stored import floats_of

MODEL = "owner/tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def hub(folder: Path) -> Hub:
    return Hub(models={MODEL: folder})


@pytest.fixture
def endpoint(hub: Hub) -> Iterator[str]:
    with hub_server(hub) as url:
        yield url


def manifest_on_hub(folder: Path, endpoint: str, *gateways: str, inside: str = "") -> ModelManifest:
    place = HubPlace(endpoint=endpoint, repository=MODEL, revision=COMMIT, folder=inside)
    return manifest_elsewhere(folder, *gateways, hub=place)


def source_of(manifest: ModelManifest, access: HubAccess | None) -> TensorSource:
    return TensorSource(manifest, Supply(hub=access, reader=RangeReader(lambda seconds: None)))


def test_every_tensor_can_be_read_from_the_hub_by_its_range(
    folder: Path, hub: Hub, endpoint: str
) -> None:
    manifest = manifest_on_hub(folder, endpoint)
    source = source_of(manifest, HubAccess())
    here = manifest_of(folder)
    assert read_all(source, manifest) == read_all(TensorSource(here), here)
    (only,) = source.log.sources
    assert only.source == f"hub {endpoint.removeprefix('http://')}"
    assert only.num_bytes == sum(info.num_bytes for info in manifest.tensors.values())
    # By the commit, so that the files are those of the manifest, and over the redirect.
    assert {path.split("/")[-2] for _, path, _ in hub.served} == {COMMIT}
    assert any(path.startswith("/cdn/") for _, path, _ in hub.served)


def test_files_may_be_in_a_folder_of_the_repository(
    folder: Path, hub: Hub, endpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "Q4_K").symlink_to(folder)
    hub.models[MODEL] = tmp_path
    manifest = manifest_on_hub(folder, endpoint, inside="Q4_K")
    name = "model.norm.weight"
    tensor = source_of(manifest, HubAccess()).load_tensor(name)
    here = TensorSource(manifest_of(folder)).load_tensor(name)
    assert torch.equal(floats_of(tensor), floats_of(here))


def test_a_transfer_that_breaks_off_goes_on_where_it_was(
    folder: Path, hub: Hub, endpoint: str
) -> None:
    hub.drops = 2
    manifest = manifest_on_hub(folder, endpoint)
    here = manifest_of(folder)
    assert read_all(source_of(manifest, HubAccess()), manifest) == read_all(
        TensorSource(here), here
    )


def test_the_token_goes_to_the_hub_of_this_device_and_not_where_it_redirects(
    folder: Path, hub: Hub, endpoint: str
) -> None:
    hub.private.add(MODEL)
    manifest = manifest_on_hub(folder, "http://127.0.0.1:1")
    source = source_of(manifest, HubAccess(endpoint=endpoint, token=TOKEN))
    source.load_tensor(next(iter(manifest.tensors)))
    assert {token for _, token in hub.tokens} == {f"Bearer {TOKEN}"}
    assert not any(path.startswith("/cdn/") for path, _ in hub.tokens)


def test_a_manifest_cannot_send_the_token_to_a_host_of_its_own(
    folder: Path, hub: Hub, endpoint: str
) -> None:
    manifest = manifest_on_hub(folder, endpoint)
    source_of(manifest, HubAccess(token=TOKEN)).load_tensor(next(iter(manifest.tensors)))
    assert hub.tokens == []


def test_the_hub_is_asked_last_and_not_at_all_where_the_device_is_offline(
    folder: Path, hub: Hub, endpoint: str
) -> None:
    name = "model.norm.weight"
    with serve_ranges(folder) as gateway:
        manifest = manifest_on_hub(folder, endpoint, gateway.url)
        source_of(manifest, HubAccess()).load_tensor(name)
    assert (len(gateway.ranges), hub.served) == (1, [])
    with serve_ranges(folder, lambda number: Answer(status=403)) as refusing:
        manifest = manifest_on_hub(folder, endpoint, refusing.url)
        offline = HubAccess.from_environ({"HF_HUB_OFFLINE": "1"})
        with pytest.raises(MissingTensorError, match="status 403"):
            source_of(manifest, offline).load_tensor(name)
        assert hub.served == []
        source_of(manifest, replace(offline, is_offline=False)).load_tensor(name)
    assert hub.served != []


def test_the_variables_are_those_of_other_programs() -> None:
    environ = {"HF_ENDPOINT": "http://mirror/", "HF_TOKEN": "t", "HF_HUB_OFFLINE": "0"}
    assert HubAccess.from_environ(environ) == HubAccess("http://mirror", "t")
    assert HubAccess.from_environ({}) == HubAccess()
    assert "hf_secret" not in repr(HubAccess(token="hf_secret"))
