"""The model in the package is what its card says."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from fog.model_choice import DEMO_MODEL
from scripts.demo_card import model_card
from scripts.demo_corpus import held_out_turns, prompt_of
from scripts.demo_questions import Task
from scripts.train_demo_model import answers

NUM_QUESTIONS: Final = 100


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    text = (DEMO_MODEL / "training.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def test_it_is_small_and_has_enough_layers_to_split(record: dict[str, Any]) -> None:
    config = json.loads((DEMO_MODEL / "config.json").read_text("utf-8"))

    assert (DEMO_MODEL / "model.safetensors").stat().st_size <= 10_000_000
    assert record["model"]["weight_bytes"] == (DEMO_MODEL / "model.safetensors").stat().st_size
    assert config["num_hidden_layers"] == record["model"]["num_layers"] >= 8


def test_its_card_is_its_record(record: dict[str, Any]) -> None:
    assert Path(DEMO_MODEL / "README.md").read_text("utf-8") == model_card(record)


def test_its_record_has_at_least_95_percent_of_held_out_questions_right(
    record: dict[str, Any],
) -> None:
    questions = record["held_out_questions"]

    right = sum(record["held_out_accuracy"][task] * asked for task, asked in questions.items())

    assert set(questions) == {str(task) for task in Task}
    assert right / sum(questions.values()) >= 0.95


@pytest.mark.parametrize("task", [Task.SUM, Task.COMPLETION, Task.COMPARISON, Task.SENSOR])
def test_it_answers_held_out_questions_as_often_right_as_its_record_says(
    record: dict[str, Any], task: Task
) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL).eval()
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    turns = held_out_turns(record["runs"][0]["seed"], task, NUM_QUESTIONS)

    given = answers(model, tokenizer, [prompt_of(turn) for turn in turns])

    right = sum(answer == turn.answer for answer, turn in zip(given, turns, strict=True))
    # The first hundred of the thousand on record: three standard deviations at 90 % are 9 points.
    assert right / len(turns) == pytest.approx(record["held_out_accuracy"][task], abs=0.09)
