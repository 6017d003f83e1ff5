import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import torch

from broker.architecture import parse_config
from broker.control import ModelManifest
from nodes.blocks import WrongShapeError
from nodes.checkpoint import DamagedTensorError, MissingTensorError, Progress, TensorSource
from nodes.ranges import RangeReader
from nodes.supply import Supply
from nodes.tensor_cache import TensorCache
from nodes.weights import LayerWeights
from tests.support.checkpoints import FAMILIES, manifest_of, random_tensors, write_checkpoint
from tests.support.range_server import Answer, RangeServer, serve_ranges
from tests.support.stored import floats_of

NAME: Final = "model.layers.1.mlp.up_proj.weight"
EXPECTED: Final = random_tensors(FAMILIES["llama"])[NAME]
SIGNATURE: Final = "signature=s3cret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama"))


def manifest_with(folder: Path, *servers: RangeServer | str) -> ModelManifest:
    """Describe ``folder`` to a node that cannot open it but reaches the servers."""
    bases = [server if isinstance(server, str) else server.url for server in servers]
    files = [path.name for path in folder.glob("*.safetensors")]
    urls = {file: [f"{base}/{file}?{SIGNATURE}" for base in bases] for file in files}
    return manifest_of(folder, folder="/nowhere/here", urls=urls)


def source_of(
    manifest: ModelManifest, progress: Progress | None = None, cache_folder: Path | None = None
) -> TensorSource:
    cache = None if cache_folder is None else TensorCache(cache_folder)
    supply = Supply(cache, reader=RangeReader(wait=lambda seconds: None))
    return TensorSource(manifest, supply, progress)


def change(manifest: ModelManifest, name: str, **fields: Any) -> ModelManifest:
    info = msgspec.structs.replace(manifest.tensors[name], **fields)
    return msgspec.structs.replace(manifest, tensors={**manifest.tensors, name: info})


def scripted(answers: Mapping[int, Answer]) -> Callable[[int], Answer]:
    return lambda number: answers.get(number, Answer())


# --- from a folder ------------------------------------------------------------------------


def test_a_tensor_is_read_from_the_folder(folder: Path) -> None:
    source = TensorSource(manifest_of(folder))
    assert torch.equal(floats_of(source.load_tensor(NAME)), EXPECTED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_tensor_keeps_the_dtype_of_the_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    source = TensorSource(manifest_of(write_checkpoint(tmp_path, dtype=dtype)))
    assert torch.equal(floats_of(source.load_tensor(NAME)), EXPECTED.to(dtype))


def test_a_missing_file_is_named_with_its_tensor(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    manifest = manifest_of(copy)
    file = copy / manifest.tensors[NAME].file
    file.unlink()
    with pytest.raises(MissingTensorError, match=rf"{NAME}.*{file}.*No such file") as caught:
        TensorSource(manifest).load_tensor(NAME)
    assert "fetch the checkpoint again" in str(caught.value)


def test_a_damaged_and_a_short_file_are_told_from_an_intact_one(
    folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    manifest = manifest_of(copy)
    info = manifest.tensors[NAME]
    content = bytearray((copy / info.file).read_bytes())
    content[info.offset + 5] ^= 1
    (copy / info.file).write_bytes(content)
    with pytest.raises(DamagedTensorError, match=rf"{NAME}.*differs from the manifest"):
        TensorSource(manifest).load_tensor(NAME)
    (copy / info.file).write_bytes(content[: info.offset + 5])
    with pytest.raises(DamagedTensorError, match=NAME):
        TensorSource(manifest).load_tensor(NAME)


def test_a_tensor_that_the_checkpoint_lacks_is_named(folder: Path) -> None:
    with pytest.raises(MissingTensorError, match=r"no tensor model\.layers\.9"):
        TensorSource(manifest_of(folder)).load_tensor("model.layers.9.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"dtype": "I8"}, "kind I8"),
        ({"shape": (72, 47)}, "expected"),
        ({"file": "../other.safetensors"}, "not the name of a file"),
        ({"checksum": "../../etc/passwd"}, "not a SHA-256 checksum"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    folder: Path, fields: dict[str, Any], complaint: str
) -> None:
    manifest = change(manifest_of(folder), NAME, **fields)
    with pytest.raises(DamagedTensorError, match=complaint):
        TensorSource(manifest).load_tensor(NAME)


# --- over HTTP ----------------------------------------------------------------------------


def test_only_the_bytes_of_the_tensor_are_fetched(folder: Path) -> None:
    with serve_ranges(folder) as server:
        manifest = manifest_with(folder, server)
        progress: list[int] = []
        tensor = source_of(manifest, progress=progress.append).load_tensor(NAME)
    info = manifest.tensors[NAME]
    assert torch.equal(floats_of(tensor), EXPECTED)
    assert server.ranges == [(info.offset, info.offset + info.num_bytes - 1)]
    assert sum(progress) == info.num_bytes


def test_a_range_is_resumed_where_the_connection_broke(folder: Path) -> None:
    drops = scripted({0: Answer(drop_after=1000), 1: Answer(status=503), 2: Answer(drop_after=0)})
    with serve_ranges(folder, drops) as server:
        manifest = manifest_with(folder, server)
        progress: list[int] = []
        tensor = source_of(manifest, progress=progress.append).load_tensor(NAME)
    info = manifest.tensors[NAME]
    assert torch.equal(floats_of(tensor), EXPECTED)
    assert [start - info.offset for start, _ in server.ranges] == [0, 1000, 1000, 1000]
    assert sum(progress) == info.num_bytes


def test_drops_are_endured_as_long_as_bytes_arrive(folder: Path) -> None:
    with serve_ranges(folder, lambda number: Answer(drop_after=900)) as server:
        tensor = source_of(manifest_with(folder, server)).load_tensor(NAME)
    assert torch.equal(floats_of(tensor), EXPECTED)
    assert len(server.ranges) == 16


def test_a_damaged_range_is_fetched_again(folder: Path) -> None:
    with serve_ranges(folder, scripted({0: Answer(flip=77)})) as server:
        progress: list[int] = []
        source = source_of(manifest_with(folder, server), progress=progress.append)
        tensor = source.load_tensor(NAME)
    assert torch.equal(floats_of(tensor), EXPECTED)
    assert len(server.ranges) == 2
    assert sum(progress) == floats_of(tensor).nbytes


def test_the_next_url_is_tried_when_one_is_damaged_refuses_or_is_gone(folder: Path) -> None:
    gone = "http://127.0.0.1:1"
    with (
        serve_ranges(folder, lambda number: Answer(flip=0)) as damaged,
        serve_ranges(folder, lambda number: Answer(status=403)) as refusing,
        serve_ranges(folder) as intact,
    ):
        manifest = manifest_with(folder, gone, damaged, refusing, intact)
        tensor = source_of(manifest).load_tensor(NAME)
    assert torch.equal(floats_of(tensor), EXPECTED)
    assert (len(damaged.ranges), len(refusing.ranges)) == (1, 1)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (Answer(status=401), "status 401: the signed URL is not accepted"),
        (Answer(status=403), "status 403: the signed URL has expired"),
        (Answer(status=404), "status 404: the server does not have the file"),
        (Answer(status=416), "shorter than the manifest says"),
        (Answer(status=500), r"status 500 \(4 times\)"),
        (Answer(status=200), "ignores byte ranges"),
        (Answer(shift=1), "Content-Range is"),
        (Answer(drop_after=0), r"the connection ended at byte \d+ \(4 times\)"),
    ],
)
def test_a_refusal_names_tensor_file_url_and_remedy_but_no_signature(
    folder: Path, answer: Answer, complaint: str
) -> None:
    with serve_ranges(folder, lambda number: answer) as server:
        manifest = manifest_with(folder, server)
        progress: list[int] = []
        with pytest.raises(MissingTensorError, match=complaint) as caught:
            source_of(manifest, progress=progress.append).load_tensor(NAME)
    message = str(caught.value)
    assert f"tensor {NAME} of {manifest.tensors[NAME].file}" in message
    assert server.url in message
    assert "check that the gateway runs" in message
    assert "s3cret" not in message
    assert sum(progress) == 0


def test_bytes_that_stay_damaged_are_told_from_missing_ones(folder: Path) -> None:
    with (
        serve_ranges(folder, lambda number: Answer(flip=3)) as server,
        pytest.raises(DamagedTensorError, match=r"checksum differs.*restart the gateway"),
    ):
        source_of(manifest_with(folder, server)).load_tensor(NAME)


def test_a_redirect_keeps_the_range(folder: Path) -> None:
    with serve_ranges(folder) as target:
        file = manifest_of(folder).tensors[NAME].file
        moved = Answer(status=302, location=f"{target.url}/{file}")
        with serve_ranges(folder, lambda number: moved) as server:
            tensor = source_of(manifest_with(folder, server)).load_tensor(NAME)
    assert torch.equal(floats_of(tensor), EXPECTED)
    assert target.ranges == server.ranges


def test_a_manifest_cannot_make_a_node_read_its_own_files(folder: Path) -> None:
    manifest = manifest_with(folder, f"file://{folder}")
    with pytest.raises(MissingTensorError, match="not an http or https URL"):
        source_of(manifest).load_tensor(NAME)


def test_no_folder_and_no_url_is_said(folder: Path) -> None:
    with pytest.raises(MissingTensorError, match="is the gateway serving weights"):
        source_of(manifest_of(folder, folder=None)).load_tensor(NAME)


# --- cache --------------------------------------------------------------------------------


def test_a_cached_tensor_is_not_fetched_again(folder: Path, tmp_path: Path) -> None:
    with serve_ranges(folder) as server:
        manifest = manifest_with(folder, server)
        source_of(manifest, cache_folder=tmp_path / "cache").load_tensor(NAME)
    # The server is gone.
    progress: list[int] = []
    source = source_of(manifest, cache_folder=tmp_path / "cache", progress=progress.append)
    assert torch.equal(floats_of(source.load_tensor(NAME)), EXPECTED)
    assert sum(progress) == EXPECTED.nbytes


def test_a_damaged_cache_entry_is_replaced(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serve_ranges(folder) as server:
        manifest = manifest_with(folder, server)
        source = source_of(manifest, cache_folder=tmp_path)
        source.load_tensor(NAME)
        (entry,) = (path for path in tmp_path.rglob("*") if path.is_file())
        entry.write_bytes(b"rubbish")
        assert torch.equal(floats_of(source.load_tensor(NAME)), EXPECTED)
        assert torch.equal(floats_of(source.load_tensor(NAME)), EXPECTED)
    assert len(server.ranges) == 2
    assert "damaged and is fetched again" in caplog.text


def test_a_cache_that_cannot_be_written_costs_only_the_cache(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with serve_ranges(folder) as server, caplog.at_level(logging.WARNING):
        source = source_of(manifest_with(folder, server), cache_folder=tmp_path / "cache")
        assert torch.equal(floats_of(source.load_tensor(NAME)), EXPECTED)
    assert "cannot cache tensors" in caplog.text


# --- together with weights ----------------------------------------------------------------


def test_a_stage_reads_the_tensors_of_its_layers_and_no_others(folder: Path) -> None:
    with serve_ranges(folder) as server:
        manifest = manifest_with(folder, server)
        weights = LayerWeights(parse_config(manifest.config), source_of(manifest))
        weights.add(3)
    own = {i.offset for name, i in manifest.tensors.items() if ".layers.3." in name}
    assert {start for start, _ in server.ranges} == own
    assert weights.num_bytes == sum(end - start + 1 for start, end in server.ranges)


def test_a_tensor_of_another_shape_than_the_config_implies_is_named(tmp_path: Path) -> None:
    manifest = manifest_of(write_checkpoint(tmp_path))
    config = parse_config({**manifest.config, "intermediate_size": 64})
    weights = LayerWeights(config, TensorSource(manifest))
    with pytest.raises(WrongShapeError, match=r"gate_proj.*\(72, 48\).*implies \(64, 48\)"):
        weights.add(0)
    assert weights.layers == []
