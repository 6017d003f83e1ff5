"""Text from token ids, piece by piece, and prompts from messages."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models

from broker.work import Sampling
from gateway.answers import AnswerText
from gateway.requests import GeneratedToken, Generation
from gateway.template import ChatTemplate, ChatTemplateError
from gateway.text import Detokenizer, StopStrings, Tokenizer, TokenizerError
from tests.support.model_folder import (
    BOS,
    BYTE,
    EOS,
    TURN,
    build_tokenizer,
    ids_of,
    word_id,
    write_model_folder,
)

TOKENIZER = Tokenizer(build_tokenizer())


def pieces_of(token_ids: Sequence[int], prompt: str = "") -> list[str]:
    detokenizer = Detokenizer(TOKENIZER, ids_of(prompt))
    return [*(detokenizer.feed(token_id) for token_id in token_ids), detokenizer.flush()]


def test_a_character_cut_by_tokens_comes_as_one_piece() -> None:
    assert pieces_of(ids_of("a€b")) == ["a", "", "", "€", "b", ""]


def test_half_a_character_at_the_end_is_not_lost() -> None:
    assert pieces_of(ids_of("a€")[:-1])[-1] == "\N{REPLACEMENT CHARACTER}"


def test_special_tokens_have_no_text() -> None:
    assert "".join(pieces_of([*ids_of("a"), TURN, BOS, *ids_of("b")])) == "ab"


def test_bytes_that_are_no_text_do_not_hold_up_the_answer() -> None:
    pieces = pieces_of([BYTE + 0x80] * 40 + ids_of("end"))
    assert any(pieces[:10])
    assert "".join(pieces).endswith("end")


@given(st.text(max_size=40), st.text(max_size=20))
def test_pieces_add_up_to_the_text_whatever_the_prompt(text: str, prompt: str) -> None:
    assert "".join(pieces_of(ids_of(text), prompt)) == text


@given(st.lists(st.integers(0, 255), max_size=30))
def test_pieces_of_any_bytes_add_up_to_their_decoding(values: list[int]) -> None:
    token_ids = [BYTE + value for value in values]
    found = "".join(pieces_of(token_ids))
    # Held bytes that turn out to be no text may show one mark more or less than at once.
    mark = "\N{REPLACEMENT CHARACTER}"
    assert found.replace(mark, "") == TOKENIZER.decode(token_ids).replace(mark, "")


def test_the_first_word_keeps_its_space_where_a_decoder_strips_it() -> None:
    vocabulary = {"▁the": 0, "▁sum": 1, "▁is": 2}
    sentencepiece = HfTokenizer(models.WordLevel(vocabulary, unk_token="▁the"))
    sentencepiece.decoder = decoders.Metaspace()
    detokenizer = Detokenizer(Tokenizer(sentencepiece), [0])
    assert [detokenizer.feed(token_id) for token_id in (1, 2)] == [" sum", " is"]


def test_a_stop_string_across_pieces_is_found_and_not_shown() -> None:
    stop = StopStrings(["<|stop|>"])
    assert [stop.feed(piece) for piece in ("4", "<|", "st", "op", "|>!")] == [
        ("4", False),
        ("", False),
        ("", False),
        ("", False),
        ("", True),
    ]


def test_text_that_only_began_like_a_stop_string_is_shown_when_that_is_clear() -> None:
    stop = StopStrings(["\n\n", "###"])
    assert [stop.feed("a\n"), stop.feed("b"), stop.feed("##")] == [
        ("a", False),
        ("\nb", False),
        ("", False),
    ]
    assert stop.flush() == "##"


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30)),
)
def test_stop_strings_do_not_depend_on_where_pieces_end(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    finder = StopStrings(stops)
    ends = [*sorted(cuts), len(text)]
    shown, found = "", False
    for start, end in zip([0, *ends], ends, strict=False):
        piece, found = finder.feed(text[start:end])
        shown += piece
        if found:
            break
    else:
        shown += finder.flush()
    # The first position at which any stop string is complete, then the one that began first.
    complete = [at + len(s) for s in stops for at in range(len(text)) if text.startswith(s, at)]
    assert found == bool(complete)
    if not found:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert any(text.startswith(stop, len(shown)) for stop in stops)


def take_all(token_ids: Sequence[int], stop: list[str], min_tokens: int = 0) -> tuple[str, str]:
    sampling = Sampling(eos_token_ids=(EOS,), min_tokens=min_tokens)
    generation = Generation(
        request_id="r", prompt_ids=(BOS,), max_tokens=len(token_ids), sampling=sampling
    )
    answer = AnswerText(TOKENIZER, generation, stop, choice=0)
    text = ""
    for index, token_id in enumerate(token_ids):
        last = "length" if index + 1 == len(token_ids) else None
        reason = "stop" if token_id == EOS else last
        piece = answer.take(GeneratedToken(index, token_id, reason))
        text += piece.text
        if piece.finish_reason:
            return text, piece.finish_reason
    raise AssertionError("no finish reason")


def test_an_answer_ends_before_a_stop_string_that_two_tokens_make() -> None:
    ids = [*ids_of("42"), word_id("<|"), word_id("stop"), word_id("|>"), *ids_of("more")]
    assert take_all(ids, ["<|stop|>"]) == ("42", "stop")


def test_an_answer_that_ends_with_half_a_stop_string_shows_it() -> None:
    assert take_all([*ids_of("42"), word_id("<|")], ["<|stop|>"]) == ("42<|", "length")
    assert take_all([*ids_of("42"), word_id("<|"), EOS], ["<|stop|>"]) == ("42<|", "stop")


def test_a_stop_string_within_the_least_number_of_tokens_ends_no_answer() -> None:
    assert take_all(ids_of("a.b.c"), ["."], min_tokens=3) == ("a.b", "stop")


# --- tokenizer and template ----------------------------------------------------------------


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is damaged"):
        Tokenizer.from_folder(tmp_path)


def test_a_template_writes_special_tokens_and_the_beginning_of_the_answer(tmp_path: Path) -> None:
    template = ChatTemplate.from_folder(write_model_folder(tmp_path))
    assert template is not None
    assert template.render([{"role": "user", "content": "hi"}]) == (
        "<s><turn>user\nhi\n<turn>assistant\n"
    )


def test_a_template_file_goes_before_the_one_in_the_tokenizers_config(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("from the file")
    template = ChatTemplate.from_folder(folder)
    assert template is not None
    assert template.render([]) == "from the file"


def test_of_several_named_templates_the_default_is_used(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None
    assert template.render([]) == "d"


def test_a_base_model_has_no_template(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(write_model_folder(tmp_path, template=None)) is None


@pytest.mark.parametrize(
    ("source", "text"),
    [
        # What published templates use beyond plain jinja2.
        ("{% generation %}{{ 1 }}{% endgeneration %}", "1"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{{ {'b': 'ü<', 'a': 1} | tojson }}", '{"b": "ü<", "a": 1}'),
        ("{% if tools is none %}no tools{% endif %}", "no tools"),
        ("{{ strftime_now('%%') }}", "%"),
        ("x\n    {% if true %}\n  y\n    {% endif %}\n", "x\n  y\n"),
    ],
)
def test_templates_find_the_surroundings_they_are_written_for(source: str, text: str) -> None:
    assert ChatTemplate(source, {}).render([]) == text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content.x.y }}", "no element 0"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_refuses_says_why(source: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate(source, {}).render([])


def test_a_template_cannot_change_the_messages_it_is_given() -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(ChatTemplateError):
        ChatTemplate("{{ messages.append(1) }}", {}).render(messages)
    assert messages == [{"role": "user", "content": "hi"}]


def test_a_damaged_template_is_refused_when_it_is_read() -> None:
    with pytest.raises(ChatTemplateError, match="damaged"):
        ChatTemplate("{% if %}", {})
