"""The files of the demo model: tokenizer, configuration, chat template, and how they are written.

Knows nothing of training. Everything here is what a Hugging Face loader expects to find.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from scripts.demo_corpus import BEGIN, END, SPECIAL_TOKENS, prompt_of
from scripts.demo_questions import Task, Turn

VOCAB_SIZE: Final = 768
CONTEXT_TOKENS: Final = 2048

# Literal tokens instead of `bos_token`: it renders the same in a server that passes no variables.
CHAT_TEMPLATE: Final = (
    "{{- '<|begin|>' }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('unknown role: ' ~ message['role']) }}"
    "{%- endif %}"
    "{{- '<|' ~ message['role'] ~ '|>' }}"
    "{%- if message['content'] is string %}{{- message['content'] | trim }}"
    "{%- else %}"
    "{%- for part in message['content'] if part['type'] == 'text' %}{{- part['text'] | trim }}"
    "{%- endfor %}"
    "{%- endif %}"
    "{{- '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Byte-level BPE in which every digit is a token, so that numbers are read place by place."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        # All 256 bytes, so that any text round-trips although the corpus is plain English.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The config.json, in the layout that transformers 4 and 5 both read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": tokenizer.token_to_id(END),
        "torch_dtype": "float32",
        "use_cache": True,
    }


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the model folder without its card, under the names that Hugging Face loaders expect."""
    out.mkdir(parents=True, exist_ok=True)
    config = model_config(tokenizer)
    bos, eos = config["bos_token_id"], config["eos_token_id"]
    write_json(out / "config.json", config)
    write_json(
        out / "generation_config.json",
        {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos, "do_sample": False},
    )
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": END,
            "model_max_length": CONTEXT_TOKENS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    tokenizer.save(str(out / "tokenizer.json"))
    # The head is tied to the embedding, so it is not stored a second time.
    weights = {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    # The library writes a file that only its owner may read; a package needs one for everybody.
    (out / "model.safetensors").chmod(0o644)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_checked(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> LlamaForCausalLM:
    """Reload the folder as a user would; `ValueError` when it is not what was trained."""
    saved: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(out).eval()
    saved_tokenizer = AutoTokenizer.from_pretrained(out)
    turn = Turn(Task.SUM, "What is 7 plus 5?", "7 plus 5 is 12.", (7, 5))
    messages = [{"role": "user", "content": turn.question}]
    rendered = saved_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    if rendered != prompt_of(turn):
        raise ValueError(f"the chat template writes {rendered!r}, not {prompt_of(turn)!r}")
    ids = saved_tokenizer(rendered, add_special_tokens=False)["input_ids"]
    if ids != tokenizer.encode(rendered, add_special_tokens=False).ids:
        raise ValueError("the saved tokenizer differs from the trained one")
    with torch.no_grad():
        expected, actual = (each(torch.tensor([ids])).logits for each in (model, saved))
    difference = float((expected - actual).abs().max())
    if difference > 1e-5:
        raise ValueError(f"the saved model's logits differ by {difference}")
    return saved
