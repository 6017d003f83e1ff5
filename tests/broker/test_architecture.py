import pytest

from broker.architecture import (
    UnsupportedModelError,
    block_bytes,
    block_kind,
    block_tensors,
    embedding_bytes,
    head_bytes,
    kv_bytes_per_token,
    parse_config,
    stage_bytes,
    stage_tensor_names,
)
from broker.plan import LayerRange
from tests.support.checkpoints import FAMILIES

LLAMA = parse_config(FAMILIES["llama"])
TIED = parse_config(FAMILIES["qwen2"])


def test_a_block_has_the_names_that_checkpoints_use() -> None:
    names = {spec.name for spec in block_tensors(LLAMA, 3).values()}
    assert names == {
        "model.layers.3.input_layernorm.weight",
        "model.layers.3.post_attention_layernorm.weight",
        "model.layers.3.self_attn.q_proj.weight",
        "model.layers.3.self_attn.k_proj.weight",
        "model.layers.3.self_attn.v_proj.weight",
        "model.layers.3.self_attn.o_proj.weight",
        "model.layers.3.mlp.gate_proj.weight",
        "model.layers.3.mlp.up_proj.weight",
        "model.layers.3.mlp.down_proj.weight",
    }


def test_head_sizes_apart_from_the_hidden_size_show_in_the_shapes() -> None:
    specs = block_tensors(parse_config(FAMILIES["qwen3"]), 0)
    assert specs["q_proj.weight"].shape == (60, 48)
    assert specs["k_proj.weight"].shape == (20, 48)
    assert specs["o_proj.weight"].shape == (48, 60)
    assert specs["q_norm.weight"].shape == (10,)


def test_qwen2_has_a_bias_on_queries_keys_and_values_alone() -> None:
    biases = {name for name in block_tensors(TIED, 0) if name.endswith(".bias")}
    assert biases == {"q_proj.bias", "k_proj.bias", "v_proj.bias"}


def test_stages_that_cover_a_model_name_every_tensor_once() -> None:
    first = stage_tensor_names(LLAMA, LayerRange(0, 2), embedding=True, head=False)
    last = stage_tensor_names(LLAMA, LayerRange(2, 5), embedding=False, head=True)
    whole = stage_tensor_names(LLAMA, LayerRange(0, 5), embedding=True, head=True)
    assert sorted(first + last) == sorted(whole)
    assert len(set(whole)) == len(whole)


def test_a_tied_head_names_the_embedding_and_counts_it_again_only_when_apart() -> None:
    assert "model.embed_tokens.weight" in stage_tensor_names(
        TIED, LayerRange(4, 5), embedding=False, head=True
    )
    ends = embedding_bytes(TIED, "float32") + head_bytes(TIED, "float32")
    apart = stage_bytes(TIED, "float32", range(2), embedding=True, head=False) + stage_bytes(
        TIED, "float32", range(2, 5), embedding=False, head=True
    )
    together = stage_bytes(TIED, "float32", range(5), embedding=True, head=True)
    assert apart == 5 * block_bytes(TIED, "float32", 0) + ends
    assert together == apart - embedding_bytes(TIED, "float32")


def test_bfloat16_takes_half_the_bytes() -> None:
    assert block_bytes(LLAMA, "float32", 0) == 2 * block_bytes(LLAMA, "bfloat16", 0)
    assert kv_bytes_per_token(LLAMA, "float32", 5) == 5 * 2 * 2 * 8 * 4
    assert kv_bytes_per_token(LLAMA, "bfloat16", 1) == 2 * 2 * 8 * 2


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="int3"):
        block_bytes(LLAMA, "int3", 0)


def test_a_layer_outside_the_model_has_no_kind() -> None:
    assert block_kind(LLAMA, 4) == "full"
    with pytest.raises(ValueError, match="layer 5"):
        block_kind(LLAMA, 5)
