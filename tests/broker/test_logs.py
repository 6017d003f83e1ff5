import json
import logging
import sys

import pytest

from broker.logs import JsonLines


def line_of(text: str, *values: object, **fields: object) -> dict[str, object]:
    record = logging.LogRecord("gateway.meter", logging.INFO, "", 0, text, values, None)
    record.created = 1.5
    for name, value in fields.items():
        setattr(record, name, value)
    written = JsonLines().format(record)
    assert "\n" not in written
    found: dict[str, object] = json.loads(written)
    return found


def test_a_line_is_an_object_with_the_ids_as_fields() -> None:
    assert line_of("request %s finished", "r-1", request_id="r-1", seconds=0.25, other="x") == {
        "time": "1970-01-01T00:00:01.500+00:00",
        "level": "INFO",
        "logger": "gateway.meter",
        "message": "request r-1 finished",
        "request_id": "r-1",
        "seconds": 0.25,
    }


@pytest.mark.parametrize("text", ["two\nlines", 'a "quote"', "\x1b[31m", "日本"])
def test_whatever_is_in_a_message_stays_in_its_line(text: str) -> None:
    assert line_of("%s", text)["message"] == text


def test_an_exception_is_in_the_line_of_its_message() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), sys.exc_info())

    found = json.loads(JsonLines().format(record))

    assert found["exception"].endswith("ValueError: no")
