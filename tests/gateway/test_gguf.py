"""What a GGUF file says of its model: tokenizer, template, defaults, and what is refused."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Final

import gguf
import msgspec
import pytest
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from fog.model_choice import choose_model
from gateway.gguf.file import Metadata, parts_of, read_gguf
from gateway.gguf.text import read_text
from gateway.gguf.tokenizer import tokenizer_of
from gateway.hub import model_path
from gateway.manifest import prepare_manifest
from gateway.model import ModelRefusedError, ModelText
from gateway.models import model_name
from gateway.text import TokenizerError
from gateway.weights import UrlSigner, with_urls
from nodes.checkpoint import TensorSource
from nodes.stored import QuantisedTensor
from tests.support.checkpoints import CHAT_TEMPLATE
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.gguf_files import byte_vocabulary, write_twins
from tests.support.stored import floats_of

TEXTS: Final = (
    "Hello, World! It's 2026 and we've 12345 tokens.\n\n  Indented\ttext  with   spaces.",
    "Größe, café, naïve; 東京 \N{SNOWMAN}\N{VARIATION SELECTOR-16} and camelCase HTTPServer/path",
    "<s>special</s> left <tool>alone</tool> ",
    " leading space",
    "",
)
SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
# As the tokenizer.json of these models have them.
LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2: Final = LLAMA3.replace("{1,3}", "")


def add_special(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<s>", "</s>")])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<tool>", "</tool>")])


def trained_byte_level(splitter: pre_tokenizers.PreTokenizer | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitter is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*([splitter] if splitter else []), last])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    add_special(tokenizer)
    return tokenizer


def trained_sentence_piece(*, has_prefix: bool) -> Tokenizer:
    """Return what SentencePiece's pairs are as a tokenizer.json."""
    prepend = [normalizers.Prepend(SPACE)] if has_prefix else []
    normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    special += ["<tool>", "</tool>"]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    words = [word for text in TEXTS[:2] for word in text.replace(" ", "\0 ").split("\0")]
    trained.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in _state(trained)["merges"]]
    model = models.BPE(
        trained.get_vocab(), merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence([*steps, *strip])
    add_special(tokenizer)
    return tokenizer


def _state(tokenizer: Tokenizer) -> dict[str, Any]:
    import json

    state: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return state


def keys_of(tokenizer: Tokenizer, kind: str, **more: Any) -> dict[str, Any]:
    """Return what llama.cpp's converter writes of a tokenizer."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "<tool>": 4, "</tool>": 4}
    tokens = [token for token, _ in vocabulary]
    merges = [" ".join(pair) for pair in _state(tokenizer)["merges"]]
    own: dict[str, Any] = {"tokenizer.ggml.merges": merges}
    if kind == "llama":
        # Scores are ranks: a merge that was found later makes a less likely token.
        made = [pair.replace(" ", "") for pair in merges]
        scores = {token: -float(rank) for rank, token in reversed(list(enumerate(made)))}
        own = {"tokenizer.ggml.scores": [scores.get(token, -1e4) for token in tokens]}
        kinds |= {f"<0x{byte:02X}>": 6 for byte in range(256)}
        own["tokenizer.ggml.unknown_token_id"] = 0
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(token, 1) for token in tokens],
        "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
        "tokenizer.ggml.eos_token_id": tokens.index("</s>"),
        "tokenizer.ggml.add_bos_token": False,
        **own,
        **more,
    }


def rebuilt(keys: dict[str, Any]) -> Tokenizer:
    return tokenizer_of(Metadata(Path("tiny.gguf"), keys))


def assert_same_tokenizer(found: Tokenizer, expected: Tokenizer) -> None:
    for text in TEXTS:
        ids = expected.encode(text).ids
        assert found.encode(text).ids == ids
        for keep_special in (False, True):
            assert found.decode(ids, skip_special_tokens=not keep_special) == expected.decode(
                ids, skip_special_tokens=not keep_special
            )


@pytest.mark.parametrize(
    ("rule", "splitter"),
    [
        ("gpt-2", None),
        ("llama-bpe", pre_tokenizers.Split(Regex(LLAMA3), "isolated")),
        ("qwen2", pre_tokenizers.Split(Regex(QWEN2), "isolated")),
        ("smollm", pre_tokenizers.Digits(individual_digits=True)),
    ],
)
def test_a_byte_level_tokenizer_gives_the_ids_of_its_original(
    rule: str, splitter: pre_tokenizers.PreTokenizer | None
) -> None:
    original = trained_byte_level(splitter)
    if rule == "smollm":
        # Its second step is GPT-2's rule.
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        assert splitter is not None
        original.pre_tokenizer = pre_tokenizers.Sequence([splitter, last])
    keys = keys_of(original, "gpt2", **{"tokenizer.ggml.pre": rule})
    assert_same_tokenizer(rebuilt(keys), original)


@pytest.mark.parametrize("has_prefix", [True, False])
def test_merges_of_sentence_piece_follow_from_its_vocabulary(has_prefix: bool) -> None:
    original = trained_sentence_piece(has_prefix=has_prefix)
    keys = keys_of(original, "llama", **{"tokenizer.ggml.add_space_prefix": has_prefix})
    assert_same_tokenizer(rebuilt(keys), original)


def test_gemmas_merges_follow_the_order_of_its_tokens() -> None:
    tokens = ["<pad>", "<unk>", "ab", "bc", "a", "b", "c", "  ", SPACE]
    keys = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        # They would join b and c first.
        "tokenizer.ggml.scores": [0.0, 0.0, -9.0, -1.0, *[-1e4] * 5],
        "tokenizer.ggml.token_type": [3, 2, 1, 1, 1, 1, 1, 4, 1],
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }
    tokenizer = rebuilt(keys)
    assert tokenizer.encode("abc  a").tokens == ["ab", "c", SPACE * 2, "a"]
    assert tokenizer.encode("abc  a").ids == [2, 6, 7, 4]


@pytest.mark.parametrize(("kind", "begins"), [("llama", True), ("gpt2", False)])
def test_a_text_begins_as_the_file_says_or_as_its_kind_does(kind: str, begins: bool) -> None:
    is_piece = kind == "llama"
    original = trained_sentence_piece(has_prefix=True) if is_piece else trained_byte_level(None)
    keys = keys_of(original, kind, **{"tokenizer.ggml.pre": "gpt-2"})
    begin = keys["tokenizer.ggml.bos_token_id"]
    said = rebuilt({**keys, "tokenizer.ggml.add_bos_token": not begins})
    del keys["tokenizer.ggml.add_bos_token"]
    unsaid = rebuilt(keys)
    assert (unsaid.encode("Hello").ids[0] == begin) == begins
    assert (said.encode("Hello").ids[0] == begin) != begins
    assert begin not in unsaid.encode("Hello", add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.pre", "unheard-of", "split by the rule 'unheard-of'"),
        ("tokenizer.ggml.model", "rwkv", "kind 'rwkv'"),
        ("tokenizer.ggml.merges", ["no such"], "damaged"),
    ],
)
def test_a_tokenizer_that_would_be_wrong_is_refused(key: str, value: Any, message: str) -> None:
    keys = {**keys_of(trained_byte_level(None), "gpt2"), "tokenizer.ggml.pre": "gpt-2"}
    with pytest.raises(TokenizerError, match=message):
        rebuilt({**keys, key: value})


# --- beside the tokenizer -------------------------------------------------------------------


def text_of(tmp_path: Path, **more: Any) -> ModelText:
    vocabulary = {**byte_vocabulary(), **more}
    path, _ = write_twins(tmp_path, "llama", vocabulary=vocabulary)
    return read_text(read_gguf(path))


def test_the_template_has_the_names_of_special_tokens(tmp_path: Path) -> None:
    source = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}{{ unk_token }}"
    text = text_of(tmp_path, **{"tokenizer.chat_template": source})
    assert text.template is not None
    messages = [{"role": "user", "content": "hi"}]
    assert text.template.render(messages) == "<s>hi</s><unk>"


def test_a_file_without_a_template_has_none(tmp_path: Path) -> None:
    assert text_of(tmp_path, **{"tokenizer.chat_template": ""}).template is None


def test_an_answer_ends_at_every_token_that_ends_a_turn(tmp_path: Path) -> None:
    vocabulary = byte_vocabulary()
    vocabulary["tokenizer.ggml.tokens"][10] = "<|im_end|>"
    vocabulary["tokenizer.ggml.token_type"][10] = 3
    # Found in a text, it is only a text.
    vocabulary["tokenizer.ggml.tokens"][11] = "<|eot_id|>"
    text = text_of(tmp_path, **vocabulary, **{"tokenizer.ggml.eot_token_id": 7})
    assert text.generation["eos_token_id"] == [2, 7, 10]


def test_an_answer_in_channels_goes_on_behind_the_end_of_a_message(tmp_path: Path) -> None:
    vocabulary = byte_vocabulary()
    for token_id, token in enumerate(("<|end|>", "<|return|>", "<|call|>"), 10):
        vocabulary["tokenizer.ggml.tokens"][token_id] = token
        vocabulary["tokenizer.ggml.token_type"][token_id] = 3
    assert text_of(tmp_path, **vocabulary).generation["eos_token_id"] == [2, 11, 12]


def test_recommended_sampling_is_the_default(tmp_path: Path) -> None:
    sampling = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20}
    generation = text_of(tmp_path, **sampling).generation
    assert (generation["temperature"], generation["top_k"]) == (0.6, 20)


# --- served ---------------------------------------------------------------------------------


async def test_a_node_without_the_file_reads_quantised_tensors_from_its_gateway(
    tmp_path: Path,
) -> None:
    path, _ = write_twins(tmp_path, "qwen3_moe", "Q4_0", mlp_only_layers=[])
    settings = settings_for(
        path, tmp_path / "state", public_url="http://gateway.test", model_name=None
    )
    api = Api(FakeEngine(lambda _generation: []), settings)
    assert api.slot.served is not None
    assert api.slot.served.name == path.stem
    manifest = api.slot.served.manifest
    here = TensorSource(prepared(path).manifest)
    async with api.served() as url:
        signer = UrlSigner(b"k" * 32, url)
        there = TensorSource(with_urls(manifest, signer, int(time.time()) + 60))
        for name in ("model.embed_tokens.weight", "model.layers.1.mlp.experts.2.up_proj.weight"):
            tensor = await asyncio.to_thread(there.load_tensor, name)
            expected = here.load_tensor(name)
            assert isinstance(tensor, QuantisedTensor)
            assert torch.equal(floats_of(tensor), floats_of(expected))
        # Also where the folder can be read: the file is not in it.
        for folder in (None, str(path.parent)):
            shared = msgspec.structs.replace(manifest, folder=folder)
            there = TensorSource(with_urls(shared, signer, int(time.time()) + 60))
            content = await asyncio.to_thread(there.load_tokenizer)
            assert Tokenizer.from_str(content.decode()).encode("<s>Hello").ids[0] == 1


def prepared(model: Path) -> Any:
    return prepare_manifest(
        model, name="tiny", weights="float32", kv_format="float32", cache=model.parent / "sums.json"
    )


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    path, _ = write_twins(tmp_path / "model", "llama")
    twin = tmp_path / "model" / "twin"
    assert prepared(tmp_path / "model").manifest == prepared(path).manifest
    # Weights in safetensors go before.
    path.rename(twin / path.name)
    assert prepared(twin).checkpoint.gguf is None


def test_a_link_to_a_file_without_an_ending_is_a_model(tmp_path: Path) -> None:
    path, _ = write_twins(tmp_path / "model", "llama")
    blob = path.rename(tmp_path / "blob")
    path.symlink_to(blob)
    assert prepared(path).checkpoint.folder == path.parent
    assert model_path(str(path)) == path
    assert choose_model(str(path)).source == str(path)


def test_several_files_are_refused_by_name(tmp_path: Path) -> None:
    path, _ = write_twins(tmp_path / "model", "llama")
    (path.parent / "other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(ModelRefusedError, match=rf"several GGUF files .*{path.name}"):
        prepared(path.parent)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(share: float, tmp_path: Path) -> None:
    path, _ = write_twins(tmp_path, "llama")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelRefusedError, match="download it again"):
        prepared(path)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelRefusedError, match=r"'mamba' are not read; choose one of .*qwen3"):
        prepared(tmp_path / "model.gguf")


# --- several files --------------------------------------------------------------------------


def test_a_model_in_several_files_is_the_model_in_one(tmp_path: Path) -> None:
    whole, _ = write_twins(tmp_path / "whole", "llama")
    first, _ = write_twins(tmp_path / "split", "llama", tensors_per_file=20)
    parts = parts_of(first)
    expected = prepared(whole)
    for named in (first, parts[-1], first.parent):
        found = prepared(named)
        assert found.manifest.revision == expected.manifest.revision
        assert found.checkpoint.files == tuple(part.name for part in parts)
    used = {info.file for info in found.manifest.tensors.values()}
    assert used == {part.name for part in parts}
    assert len(parts) > 1


def test_it_is_named_without_the_number_of_a_part(tmp_path: Path) -> None:
    path, _ = write_twins(tmp_path, "llama", tensors_per_file=20)
    assert model_name(settings_for(path, tmp_path / "state", model_name=None)) == "llama-Q8_0"


def test_a_part_without_the_others_names_them(tmp_path: Path) -> None:
    path, _ = write_twins(tmp_path, "llama", tensors_per_file=20)
    parts = parts_of(path)
    parts[1].unlink()
    with pytest.raises(ModelRefusedError, match=rf"{parts[1].name} is not beside it; download"):
        prepared(path)


def test_a_part_under_the_name_of_a_whole_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path, _ = write_twins(tmp_path, "llama", tensors_per_file=20)
    renamed = path.rename(tmp_path / "llama.gguf")
    with pytest.raises(ModelRefusedError, match=r"00001-of-00003\.gguf and so on, or .*--merge"):
        prepared(renamed)


def test_parts_of_two_models_are_refused(tmp_path: Path) -> None:
    path, _ = write_twins(tmp_path / "one", "llama", tensors_per_file=30)
    other, _ = write_twins(tmp_path / "other", "llama", tensors_per_file=45)
    parts, others = parts_of(path), parts_of(other)
    assert len(parts) == len(others) == 2
    parts[1].write_bytes(others[1].read_bytes())
    with pytest.raises(ModelRefusedError, match="not those of one model"):
        prepared(path)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_twins(tmp_path, "llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelRefusedError, match=r"e2llm\[gguf\]"):
        prepared(path)


def test_the_template_of_the_checkpoint_is_served(tmp_path: Path) -> None:
    text = text_of(tmp_path)
    assert text.template is not None
    assert text.template.source == CHAT_TEMPLATE
