"""A model folder to a manifest: what stands in it, and what is refused."""

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from gateway.manifest import PreparedManifest, prepare_manifest
from gateway.model import ModelRefusedError
from tests.support.model_folder import CONFIG, tensors_of, write_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "model")


def prepare(folder: Path, **changes: Any) -> PreparedManifest:
    values: dict[str, Any] = {"name": "tiny", "weights": "float32", "kv_format": "float32"}
    return prepare_manifest(folder, **{**values, "cache": folder.parent / "cache.json", **changes})


def shard(folder: Path) -> None:
    """Spread the weights over two files with an index, as large checkpoints are."""
    tensors = tensors_of(CONFIG)
    names = sorted(tensors)
    weight_map = {}
    for file, part in (
        ("model-00001-of-00002.safetensors", names[::2]),
        ("model-00002-of-00002.safetensors", names[1::2]),
    ):
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def check_against_safetensors(folder: Path, prepared: PreparedManifest) -> None:
    expected = tensors_of(CONFIG)
    assert set(prepared.manifest.tensors) == set(expected)
    for name, info in prepared.manifest.tensors.items():
        content = (folder / info.file).read_bytes()[info.offset : info.offset + info.num_bytes]
        with safe_open(folder / info.file, framework="numpy") as file:
            tensor = file.get_tensor(name)
        assert content == tensor.tobytes() == expected[name].tobytes()
        assert info.checksum == hashlib.sha256(content).hexdigest()
        assert (info.dtype, info.shape) == ("F32", tensor.shape)


def test_tensors_lie_where_the_safetensors_library_finds_them(folder: Path) -> None:
    prepared = prepare(folder)
    check_against_safetensors(folder, prepared)
    assert prepared.manifest.config == CONFIG
    assert prepared.manifest.folder == str(folder)
    assert prepared.problems == ()


def test_several_files_with_an_index_are_one_model(folder: Path) -> None:
    whole = prepare(folder)
    shard(folder)
    sharded = prepare(folder)
    check_against_safetensors(folder, sharded)
    assert len({info.file for info in sharded.manifest.tensors.values()}) == 2
    # How the bytes are spread over files does not change the model.
    assert sharded.manifest.revision == whole.manifest.revision


def test_several_files_without_an_index_are_one_model(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()
    check_against_safetensors(folder, prepare(folder))


def test_a_second_copy_of_the_weights_is_left_alone(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert {info.file for info in prepare(folder).manifest.tensors.values()} == {
        "model.safetensors"
    }


def test_tensors_that_the_model_does_not_need_are_left_out(folder: Path) -> None:
    tensors = tensors_of(CONFIG)
    tensors["model.rotary_emb.inv_freq"] = tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert "model.rotary_emb.inv_freq" not in prepare(folder).manifest.tensors


def test_the_revision_changes_with_config_and_bytes_and_with_nothing_else(folder: Path) -> None:
    first = prepare(folder).manifest
    moved = shutil.copytree(folder, folder.parent / "elsewhere")
    assert prepare(moved, name="other", weights="bfloat16").manifest.revision == first.revision
    tensors = tensors_of(CONFIG)
    tensors["model.norm.weight"] += 1
    save_file(tensors, moved / "model.safetensors")
    assert prepare(moved).manifest.revision != first.revision
    (folder / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 5000.0}))
    assert prepare(folder).manifest.revision != first.revision


def test_checksums_are_kept_for_files_that_did_not_change(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "state" / "cache.json"
    first = prepare(folder, cache=cache)
    # A marked cache shows whether it was used.
    cache.write_text(
        cache.read_text().replace(
            first.manifest.tensors["lm_head.weight"].checksum, "from the cache"
        )
    )
    assert prepare(folder, cache=cache).manifest.tensors["lm_head.weight"].checksum == (
        "from the cache"
    )
    save_file(tensors_of(CONFIG), folder / "model.safetensors", metadata={"written": "again"})
    assert prepare(folder, cache=cache).manifest.revision == first.manifest.revision


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_cache_is_computed_again(folder: Path, tmp_path: Path, content: str) -> None:
    first = prepare(folder)
    (tmp_path / "cache.json").write_text(content)
    assert prepare(folder) == first


def test_progress_rises_to_one(folder: Path) -> None:
    ratios: list[float] = []
    prepare(folder, progress=ratios.append)
    assert ratios == sorted(ratios)
    assert ratios[-1] == 1.0


# --- what the folder lacks: announced, so that the nodes say so as well ---------------------


def test_a_missing_tensor_is_named_and_the_rest_is_announced(folder: Path) -> None:
    tensors = tensors_of(CONFIG)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    prepared = prepare(folder)
    assert len(prepared.problems) == 1
    assert "model.layers.1.mlp.up_proj.weight" in prepared.problems[0]
    assert "missing" in prepared.problems[0]
    assert len(prepared.manifest.tensors) == len(tensors)


def test_a_tensor_beyond_the_end_of_its_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    last = max(prepare(folder).manifest.tensors.items(), key=lambda item: item[1].offset)[0]
    path.write_bytes(path.read_bytes()[:-4])
    prepared = prepare(folder)
    assert last in prepared.problems[0]
    assert "cut off" in prepared.problems[0]
    assert last not in prepared.manifest.tensors


# --- what is refused ------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(ModelRefusedError) as refused:
        prepare(folder)
    return str(refused.value)


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_damaged_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json is damaged" in refusal(folder)


def test_weights_in_another_format_are_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_an_unsupported_architecture_is_refused_by_name(folder: Path) -> None:
    (folder / "config.json").write_text(
        json.dumps({**CONFIG, "architectures": ["MambaForCausalLM"], "model_type": "mamba"})
    )
    assert "Mamba" in refusal(folder)


def test_a_missing_file_of_the_index_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/hostname", 5])
def test_an_index_cannot_lead_out_of_the_folder(folder: Path, name: Any) -> None:
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no file name" in refusal(folder)


def header(content: Any, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        header(b"{}", length=1000),
        header(b"{}", length=2**60),
        header(b"{"),
        header(b"\xff\xff"),
        header([]),
        header({"a": 5}),
        header({"a": {"dtype": "F32"}}),
        header(entry(data_offsets=[0])),
        header(entry(data_offsets=[8, 0])),
        header(entry(data_offsets=[-8, 0])),
        header(entry(data_offsets=[0, 4])),
        header(entry(shape=[2.5])),
        header(entry(shape="ab")),
        header(b"[" * 100_000),
    ],
)
def test_a_damaged_header_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors is damaged or cut off" in refusal(folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    assert "both in a.safetensors and in b.safetensors" in refusal(folder)


def test_a_model_whose_description_fits_into_no_message_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.manifest.DEFAULT_MAX_PAYLOAD_BYTES", 66_000)
    with pytest.raises(ModelRefusedError, match=r"tensors take .* more than a message may have"):
        prepare(folder)
