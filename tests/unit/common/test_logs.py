"""Log lines: one event is one line, as text or as a JSON object."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

from services.common import logs

HOSTILE = 'a\nb\r"quoted" \ud800 2026-01-01 proxy ERROR forged'


@contextmanager
def logging_as(format: logs.Format) -> Iterator[None]:
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    root.handlers.clear()  # pytest's own
    try:
        logs.begin(prog="thing", level="info", format=format)
        yield
    finally:
        root.handlers[:] = kept
        root.setLevel(level)


def test_text_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_as("text"):
        logging.getLogger("a.b").warning("it said %s", HOSTILE.replace("\ud800", ""))
        logging.getLogger("a.b").debug("too little")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.fullmatch(r'[\d-]+ [\d:,]+ thing WARNING a\.b: it said a\\nb\\r"quoted"  2026.* forged', lines[0])


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_as("json"):
        logging.getLogger("a.b").info("it said %s", HOSTILE, extra={logs.FIELDS: {"ms": 1.5, "of": {1}}})
        try:
            raise KeyError("lost")
        except KeyError:
            logging.getLogger("a").exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {
        "level": "info",
        "service": "thing",
        "logger": "a.b",
        "message": f"it said {HOSTILE}",
        "ms": 1.5,
        "of": "{1}",
    }
    assert (second["level"], second["message"]) == ("error", "failed")
    assert second["exception"].endswith("KeyError: 'lost'")
