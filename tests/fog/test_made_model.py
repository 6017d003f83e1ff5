"""Checkpoints of random weights: what other programs accept, and the real models' sizes."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from fog.commands import app
from fog.made_model import NoRoomError, NotEmptyError, checkpoint_bytes, make_model
from fog.made_tokenizer import BOS_ID, EOS_ID, SPECIAL_TOKENS, make_tokenizer
from fog.shapes import shapes
from fog.workshop import SHAPES
from gateway.template import ChatTemplate
from gateway.text import Tokenizer
from tests.support.oracle import Oracle

SMALL = {
    **shapes()["qwen2.5-0.5b"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1500,
}

SMALL_MIXTURE = {
    **shapes()["qwen3-moe-small"],
    "hidden_size": 64,
    "head_dim": 16,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "vocab_size": 1500,
}


# As the publishers' model cards count them.
@pytest.mark.parametrize(
    ("shape", "num_parameters"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("tinyllama-1.1b", 1_100_048_384),
        ("llama-3.2-1b", 1_235_814_400),
        ("qwen3-0.6b", 596_049_920),
    ],
)
def test_a_shape_has_as_many_parameters_as_the_real_model(shape: str, num_parameters: int) -> None:
    assert checkpoint_bytes(shapes()[shape]) == 2 * num_parameters


def test_the_mixture_of_experts_fits_into_three_gigabytes_in_float32() -> None:
    assert 2.5e9 < 2 * checkpoint_bytes(shapes()["qwen3-moe-small"]) < 3e9


@pytest.mark.parametrize("config", [SMALL, SMALL_MIXTURE], ids=["dense", "mixture"])
def test_transformers_loads_what_is_written_and_computes_finite_logits(
    config: dict[str, Any], tmp_path: Path
) -> None:
    made = make_model(config, tmp_path / "m", shard_bytes=100_000)
    assert made.num_files > 1
    logits = Oracle(tmp_path / "m").logits(range(3, 40))
    assert logits.isfinite().all()
    assert logits.std() > 0.1


def test_equal_seeds_write_equal_weights_however_they_are_split(tmp_path: Path) -> None:
    def tensors(name: str, **arguments: Any) -> dict[str, bytes]:
        make_model(SMALL, tmp_path / name, **arguments)
        found: dict[str, bytes] = {}
        for path in (tmp_path / name).glob("*.safetensors"):
            found |= {
                key: tensor.float().numpy().tobytes() for key, tensor in load_file(path).items()
            }
        return found

    first = tensors("first")
    assert first == tensors("split", shard_bytes=100_000)
    assert first != tensors("other", seed=1)


def test_progress_adds_up_to_the_bytes_of_the_checkpoint(tmp_path: Path) -> None:
    steps: list[int] = []
    make_model(SMALL, tmp_path / "m", progress=steps.append)
    assert sum(steps) == checkpoint_bytes(SMALL)


@pytest.mark.parametrize(
    "text", ["Why is the sky blue?", "Grüße, 你好 🙂", "\n\ttabs  and spaces "]
)
def test_the_tokenizer_gives_every_text_back(tmp_path: Path, text: str) -> None:
    make_model(SMALL, tmp_path / "m")
    tokenizer = Tokenizer.from_folder(tmp_path / "m")
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_id_of_a_large_vocabulary_has_a_token_of_its_own() -> None:
    tokenizer = make_tokenizer(151_936)
    assert tokenizer.get_vocab_size() == 151_936
    tokens = {tokenizer.id_to_token(token_id) for token_id in range(151_936)}
    assert len(tokens) == 151_936
    assert None not in tokens


def test_a_chat_ends_each_message_with_the_token_that_ends_an_answer(tmp_path: Path) -> None:
    make_model(SMALL, tmp_path / "m")
    template = ChatTemplate.from_folder(tmp_path / "m")
    assert template is not None
    text = template.render([{"role": "user", "content": "hello"}])
    tokenizer = Tokenizer.from_folder(tmp_path / "m")
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids[0] == SPECIAL_TOKENS.index("<|user|>")
    assert ids[-2:] == (EOS_ID, SPECIAL_TOKENS.index("<|assistant|>"))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (BOS_ID, EOS_ID)


def test_a_vocabulary_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        make_tokenizer(200)
    with pytest.raises(ValueError, match="larger than can be made"):
        make_tokenizer(1_000_000)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NotEmptyError, match="choose an empty or new folder"):
        make_model(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = checkpoint_bytes(SMALL)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(NoRoomError, match=rf"{needed} bytes .* are needed, 1 .* free; free some"):
        make_model(SMALL, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_there", [False, True])
def test_what_was_written_is_removed_when_the_rest_could_not_be(
    tmp_path: Path, error: BaseException, is_there: bool
) -> None:
    folder = tmp_path / "m"
    if is_there:
        folder.mkdir()

    def fail(num_bytes: int) -> None:
        raise error

    with pytest.raises(type(error)):
        make_model(SMALL, folder, progress=fail)
    assert [path.name for path in tmp_path.rglob("*")] == ["m"] * is_there
    assert make_model(SMALL, folder).num_files == 1


def test_a_folder_in_which_nothing_may_be_written_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    out = str(tmp_path / "m")
    result = CliRunner().invoke(app, ["make-model", "--like", "qwen2.5-0.5b", "--out", out])
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert f"{out}: Permission denied; choose a folder in which you may write" in text


@pytest.mark.parametrize("command", [["make-model"], ["bench", "engine"]])
def test_the_help_names_all_shapes(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(shapes()) == list(SHAPES)
    monkeypatch.setenv("COLUMNS", "300")
    result = CliRunner().invoke(app, [*command, "--help"])
    assert all(name in result.output for name in SHAPES)


def test_an_unknown_shape_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["make-model", "--like", "qwen2.5", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "qwen2.5-0.5b" in result.output
