"""Trains the demo model that ships in `fog/demo_model`: tokenizer, weights and model card.

    python scripts/train_demo_model.py --out fog/demo_model --seed 1
    python scripts/train_demo_model.py --out fog/demo_model --seed 1 --refine fog/demo_model

The second form goes on with a model that the script has made, on fresh text with more of what is
hard, and adds itself to the record. The text comes from `demo_corpus.py`. Nothing is downloaded. A
run is a function of its options and of the machine's kernels: the same options give the same
tokenizer everywhere, and weights that differ only as rounding makes them differ.
"""

import argparse
import json
import math
import platform
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

# Run as a file, Python looks for modules in this folder only; ours are named from the root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.demo_batches import (
    QUESTION_WEIGHT,
    ROW_TOKENS,
    Batch,
    Example,
    batches_of,
    collate,
    rows_of,
    tokenise,
)
from scripts.demo_card import SAMPLE_QUESTIONS, model_card
from scripts.demo_corpus import END, documents, held_out_turns, prompt_of, split_pairs
from scripts.demo_files import (
    CONTEXT_TOKENS,
    load_checked,
    model_config,
    save,
    train_tokenizer,
    write_json,
)
from scripts.demo_questions import Task, Turn

WARMUP_STEPS: Final = 100
HELD_OUT_QUESTIONS: Final = 1000
TOKENIZER_DOCUMENTS: Final = 20_000
COMMAND: Final = "python scripts/train_demo_model.py --out fog/demo_model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run depends on. ``batch_tokens`` counts padding; a step is one batch."""

    out: Path
    seed: int
    num_documents: int
    batch_tokens: int
    peak_rate: float
    num_threads: int
    evaluate_every: int
    refine: Path | None


def learning_rate(step: int, num_steps: int, peak_rate: float) -> float:
    """Linear warm-up, then half a cosine down to one percent of the peak."""
    if step < WARMUP_STEPS:
        return peak_rate * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, num_steps - WARMUP_STEPS)
    return peak_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, float]:
    """Weighted mean cross-entropy to train on, and that of answer tokens alone; both in nats."""
    logits = model(
        input_ids=batch.ids,
        attention_mask=batch.allowed,
        position_ids=batch.positions,
        use_cache=False,
    ).logits
    targets, weights = batch.ids[:, 1:].flatten(), batch.weights[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets, reduction="none"
    )
    answers = (weights == 1.0).float()
    reported = float((losses.detach() * answers).sum() / answers.sum())
    return (losses * weights).sum() / weights.sum(), reported


def train(
    model: LlamaForCausalLM, tokenizer: Tokenizer, examples: Sequence[Example], options: Options
) -> list[float]:
    """One pass over the examples; returns the answer loss of every step."""
    rng = random.Random(f"batches {options.seed}")
    plan = batches_of(rows_of(examples, ROW_TOKENS), options.batch_tokens, rng)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=options.peak_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    history: list[float] = []
    started = time.monotonic()
    model.train()
    for step, rows in enumerate(plan):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(plan), options.peak_rate)
        loss, reported = answer_loss(model, collate(rows))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append(reported)
        if (step + 1) % 50 == 0:
            recent = sum(history[-50:]) / 50
            print(
                f"step {step + 1}/{len(plan)} loss {recent:.4f} {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if (step + 1) % options.evaluate_every == 0 and step + 1 < len(plan):
            save(model, tokenizer, options.out)
            print(
                "  held out:", json.dumps(evaluate(model, tokenizer, options.seed, 128)), flush=True
            )
            model.train()
    return history


def loss_curve(history: Sequence[float], width: int) -> list[float]:
    """Means over windows of ``width`` steps."""
    windows = [history[start : start + width] for start in range(0, len(history), width)]
    return [round(sum(window) / len(window), 4) for window in windows]


@torch.no_grad()
def answers(model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """Greedy continuations up to the end token, at most 80 tokens long."""
    end = int(tokenizer.encode(END, add_special_tokens=False).ids[0])
    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    result = [""] * len(prompts)
    # Short and long answers end together where similar prompts share a batch.
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    for start in range(0, len(order), 128):
        chosen = order[start : start + 128]
        length = max(len(encoded[index]) for index in chosen)
        ids = torch.full((len(chosen), length), end)
        mask = torch.zeros(len(chosen), length, dtype=torch.long)
        for row, index in enumerate(chosen):
            ids[row, length - len(encoded[index]) :] = torch.tensor(encoded[index])
            mask[row, length - len(encoded[index]) :] = 1
        generated = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=80,
            eos_token_id=end,
            pad_token_id=end,
        )
        for index, tokens in zip(chosen, generated[:, length:].tolist(), strict=True):
            kept = tokens[: tokens.index(end)] if end in tokens else [*tokens, end]
            # An answer that never ends is wrong, and keeping the end token makes it unequal.
            result[index] = tokenizer.decode(kept, skip_special_tokens=False)
    return result


def evaluate(
    model: LlamaForCausalLM, tokenizer: Tokenizer, seed: int, num_questions: int
) -> dict[str, float]:
    """Share of held-out questions answered exactly, per task."""
    model.eval()
    accuracy = {}
    for task in Task:
        turns = held_out_turns(seed, task, num_questions)
        given = answers(model, tokenizer, [prompt_of(turn) for turn in turns])
        right = sum(answer == turn.answer for answer, turn in zip(given, turns, strict=True))
        accuracy[str(task)] = round(right / len(turns), 4)
    return accuracy


def sample_answers(model: LlamaForCausalLM, tokenizer: Tokenizer) -> dict[str, str]:
    """What the model answers to the questions of the card."""
    prompts = [prompt_of(Turn(Task.SUM, question, "")) for question in SAMPLE_QUESTIONS]
    return dict(zip(SAMPLE_QUESTIONS, answers(model, tokenizer, prompts), strict=True))


def begun(options: Options) -> tuple[LlamaForCausalLM, Tokenizer, list[dict[str, Any]]]:
    """The model to train, its tokenizer, and the record of the runs that made it so far."""
    if options.refine is None:
        # A part of the text shows all words; more would only change the order of rare merges.
        texts = [document.text for document in documents(options.seed, TOKENIZER_DOCUMENTS)]
        tokenizer = train_tokenizer(texts)
        return LlamaForCausalLM(LlamaConfig(**model_config(tokenizer))), tokenizer, []
    record = json.loads((options.refine / "training.json").read_text("utf-8"))
    if record["runs"][0]["seed"] != options.seed:
        raise SystemExit("another seed holds out other pairs: some of them were trained already")
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(options.refine)
    return model, Tokenizer.from_file(str(options.refine / "tokenizer.json")), record["runs"]


def command_of(options: Options) -> str:
    """The command line that does what the options say, on the model of the package."""
    words = [COMMAND, f"--seed {options.seed}", f"--documents {options.num_documents}"]
    words.append(f"--peak-rate {options.peak_rate}")
    return " ".join([*words, *(["--refine fog/demo_model"] if options.refine else [])])


def run(options: Options) -> dict[str, Any]:
    """Train, save, evaluate the saved files, and return the record of it all."""
    started = time.monotonic()
    torch.set_num_threads(options.num_threads)
    torch.manual_seed(options.seed)
    model, tokenizer, runs = begun(options)
    corpus = list(documents(options.seed, options.num_documents, part=len(runs)))
    examples = tokenise(tokenizer, corpus)
    config = model_config(tokenizer)
    num_tokens = sum(len(example.ids) for example in examples)
    print(
        f"{len(corpus)} documents, {num_tokens} tokens, {model.num_parameters()} parameters",
        flush=True,
    )
    history = train(model, tokenizer, examples, options)
    model.eval()
    save(model, tokenizer, options.out)
    seconds = time.monotonic() - started
    saved = load_checked(model, tokenizer, options.out)
    accuracy = evaluate(saved, tokenizer, options.seed, HELD_OUT_QUESTIONS)
    this_run = {
        "command": command_of(options),
        "seed": options.seed,
        "num_documents": len(corpus),
        "num_characters": sum(len(document.text) for document in corpus),
        "num_tokens": num_tokens,
        "longest_tokens": max(len(example.ids) for example in examples),
        "num_steps": len(history),
        "batch_tokens": options.batch_tokens,
        "peak_rate": options.peak_rate,
        "warmup_steps": WARMUP_STEPS,
        "question_weight": QUESTION_WEIGHT,
        "seconds": round(seconds),
        "num_threads": options.num_threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "answer_loss": round(sum(history[-100:]) / len(history[-100:]), 5),
        "loss_every_100_steps": loss_curve(history, 100),
        "held_out_accuracy": accuracy,
    }
    trained_pairs, held_out_pairs = split_pairs(options.seed)
    return {
        "runs": [*runs, this_run],
        "num_pairs": len(trained_pairs) + len(held_out_pairs),
        "num_held_out_pairs": len(held_out_pairs),
        "model": {
            "num_parameters": model.num_parameters(),
            "weight_bytes": (options.out / "model.safetensors").stat().st_size,
            "num_layers": config["num_hidden_layers"],
            "hidden_size": config["hidden_size"],
            "num_heads": config["num_attention_heads"],
            "num_kv_heads": config["num_key_value_heads"],
            "vocab_size": config["vocab_size"],
            "context_tokens": CONTEXT_TOKENS,
        },
        "sample_answers": sample_answers(saved, tokenizer),
        "held_out_accuracy": accuracy,
        "held_out_questions": {
            str(task): len(held_out_turns(options.seed, task, HELD_OUT_QUESTIONS)) for task in Task
        },
    }


def main() -> None:
    """Read the options, train, and write record and card beside the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=70_000, help="corpus, passed once")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--peak-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=500, help="steps")
    parser.add_argument("--refine", type=Path, help="folder of a model to go on with")
    values = parser.parse_args()
    options = Options(
        out=values.out,
        seed=values.seed,
        num_documents=values.documents,
        batch_tokens=values.batch_tokens,
        peak_rate=values.peak_rate,
        num_threads=values.threads,
        evaluate_every=values.evaluate_every,
        refine=values.refine,
    )
    record = run(options)
    write_json(options.out / "training.json", record)
    (options.out / "README.md").write_text(model_card(record), encoding="utf-8")
    print(json.dumps(record["held_out_accuracy"], indent=2))


if __name__ == "__main__":
    main()
