"""The client of a running fog, against a gateway with canned answers."""

import itertools
import random
import socket
from collections.abc import Iterator

import pytest

from fog.address import AddressError
from fog.answer import server_sent_events
from fog.client import FogClient, FogRequestError, FogSilentError, FogUnreachableError, Question
from fog.ports import free_port
from tests.fog.fake_gateway import PLAN, Behaviour, serve

ASKED = Question(messages=[{"role": "user", "content": "5 + 7 ="}], max_tokens=8)


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
def client(behaviour: Behaviour) -> Iterator[FogClient]:
    # A clock that advances by a second whenever it is read makes times exact.
    with serve(behaviour) as url:
        yield FogClient(url, clock=itertools.count().__next__)


def test_an_answer_is_streamed_with_its_token_ids_and_times(
    client: FogClient, behaviour: Behaviour
) -> None:
    pieces: list[str] = []
    answer = client.ask(ASKED, "tiny", pieces.append)

    assert pieces == ["Twelve", "."]
    assert answer.text == "Twelve."
    assert answer.token_ids == [7, 8, 9]
    assert answer.finish_reason == "stop"
    # Sent at 0; the role at 1 is not a token; tokens at 2, 3 and 4.
    assert answer.ttft_seconds == 2
    assert answer.tpot_seconds == 1
    assert answer.tokens_per_second == 1
    assert answer.token_times == [2, 3, 4]
    ((path, body),) = behaviour.asked
    assert path == "/v1/chat/completions"
    assert body["max_tokens"] == 8
    assert body["return_token_ids"] is True


def test_a_model_without_a_chat_template_gets_the_question_as_a_prompt(
    client: FogClient, behaviour: Behaviour
) -> None:
    behaviour.chat_template = False
    answer = client.ask(ASKED, "tiny")
    assert answer.text == "Twelve."
    path, body = behaviour.asked[-1]
    assert path == "/v1/completions"
    assert body["prompt"] == "5 + 7 ="


def test_a_refused_request_names_message_and_field(client: FogClient) -> None:
    with pytest.raises(FogRequestError, match="at most 512") as caught:
        client.ask(Question(messages=ASKED.messages, max_tokens=9999), "tiny")
    assert caught.value.status == 400
    assert caught.value.param == "max_tokens"


def test_a_failure_in_the_middle_of_an_answer_is_an_error(
    client: FogClient, behaviour: Behaviour
) -> None:
    behaviour.fail_in_stream = True
    with pytest.raises(FogRequestError, match="failed on every replica"):
        client.ask(ASKED, "tiny")


def test_an_answer_that_was_cut_off_goes_on_where_it_was(
    client: FogClient, behaviour: Behaviour
) -> None:
    behaviour.cut_after = [1, 0]
    behaviour.refusals = 1  # The gateway has been started again and is not ready yet.
    texts: list[str] = []

    answer = client.ask(ASKED, "tiny", texts.append)

    assert (answer.text, answer.token_ids) == ("Twelve.", [7, 8, 9])
    assert texts == ["Twelve", "."]
    assert behaviour.resumed == [("chatcmpl-1", "1")] * 3


def test_an_answer_that_never_goes_on_is_given_up(behaviour: Behaviour) -> None:
    behaviour.cut_after = [1] + [0] * 1000
    times = iter(range(1000))
    with serve(behaviour) as url:
        client = FogClient(
            url, resume_seconds=9, clock=lambda: float(next(times)), sleep=lambda seconds: None
        )
        with pytest.raises(FogUnreachableError, match="cut off"):
            client.ask(ASKED, "tiny")
    assert 3 <= len(behaviour.resumed) <= 9


def test_readiness_says_why_not_and_how_far(client: FogClient, behaviour: Behaviour) -> None:
    behaviour.refusals = 1
    first, second = client.readiness(), client.readiness()
    assert (first.ready, first.reason, first.progress) == (
        False,
        "2 of 6 devices have measured",
        0.3,
    )
    assert second.ready


def test_plan_devices_and_model_are_what_the_gateway_says(client: FogClient) -> None:
    assert client.plan() == PLAN
    assert client.devices()[0]["id"] == "laptop"
    assert client.model() == "tiny"


def test_where_nothing_answers_the_address_and_the_remedy_are_named() -> None:
    url = f"http://127.0.0.1:{free_port(random.Random(1))}"
    with pytest.raises(FogUnreachableError, match="e2llm up") as caught:
        FogClient(url).plan()
    assert url in str(caught.value)


@pytest.mark.parametrize(
    "url", ["foo", "localhost:8080", "http://", "ftp://fog", "http://fog:99999", "http://[fog"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(AddressError, match="is not an address"):
        FogClient(url)


def test_what_listens_and_does_not_answer_is_told_from_what_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        url = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        with pytest.raises(FogSilentError, match=r"something listens .* not answered for 0\.1 s"):
            FogClient(url, look_seconds=0.1).devices()


def test_events_may_span_lines_and_comments_are_skipped() -> None:
    lines = [
        b": ping\n",
        b"\n",
        b"id: 7\n",
        b"data: a\n",
        b"data:b\r\n",
        b"\r\n",
        b"id: 3\n",
        b"data: torn\n",
    ]
    assert list(server_sent_events(iter(lines))) == [("7", "a\nb")]
