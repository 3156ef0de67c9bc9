"""How a service's log lines look: text for people, or one JSON object a line. What is logged never has a key in it.

Either way one event is one line, whatever its message quotes: only a traceback, in text, takes more.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

Format = Literal["text", "json"]
FIELDS = "fields"
"""`logger.info(message, extra={FIELDS: {...}})`: more for the JSON object."""


def begin(*, prog: str, level: str, format: Format, stream: TextIO | None = None) -> None:
    """Sends this process's log to stderr, or to `stream`; once."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json(prog) if format == "json" else _Text(prog))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def line(text: str, level: int = logging.INFO) -> str:
    """What is said past the log, on its own: as it is, or as an object like the log's."""
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
