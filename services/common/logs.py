"""The format of a service's log: text for people, or one JSON object per line. Log records never contain keys.

Either way one event is one line, whatever its message quotes; only a traceback, in text, takes more.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

Format = Literal["text", "json"]
FIELDS = "fields"
"""`logger.info(message, extra={FIELDS: {...}})` adds fields to the JSON object."""


def begin(*, prog: str, level: str, format: Format, stream: TextIO | None = None) -> None:
    """Sends this process's log to stderr, or to `stream`. Called once."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json(prog) if format == "json" else _Text(prog))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def line(text: str, level: int = logging.INFO) -> str:
    """A line to be printed outside the log: as it is, or as an object in the log's format."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _Json):
            return handler.format(logging.LogRecord(__name__, level, "", 0, "%s", (text,), None))
    return text


class _Text(logging.Formatter):
    def __init__(self, prog: str) -> None:
        super().__init__(f"%(asctime)s {prog} %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")


class _Json(logging.Formatter):
    def __init__(self, prog: str) -> None:
        super().__init__()
        self._prog = prog

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": self._prog,
            "logger": record.name,
            "message": record.getMessage(),
        } | getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
