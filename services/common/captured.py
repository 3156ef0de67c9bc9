"""Turns what C libraries write to standard error into log records, one per line.

The transfer engine (glog) and gRPC (absl) know nothing of our log format. So file descriptor 2 becomes a pipe that a
thread reads; the log itself goes where it pointed before. The pipe never blocks a writer: a library that logs while
holding the interpreter lock would wait for the reader, and the reader for the lock. What does not fit is lost. A crash
may lose the last lines in the pipe, but not Python's own stack traces, which bypass it (faulthandler).

Not for processes with children: those would inherit the pipe.
"""

import faulthandler
import fcntl
import logging
import os
import re
import sys
import threading
from contextlib import suppress
from typing import Final, TextIO

logger = logging.getLogger("stderr")

PIPE_BYTES: Final = 1 << 20
LINE_BYTES_MAX: Final = 1 << 16
CLOSE_S: Final = 1.0
_LEVELS: Final = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_LINE: Final = re.compile(r"([IWEF])\d{4} \d\d:\d\d:[\d.]+ +\d+ (\S+?)\] (.*)", re.DOTALL)
_HARMLESS: Final = (  # printed at every start, and of no consequence
    "Local segment descriptor not found",
    "WARNING: Logging before InitGoogleLogging() is written to STDERR",
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
)


class Captured:
    """Captures from construction to close(). `stream` is where standard error went before."""

    def __init__(self) -> None:
        sys.stderr.flush()
        self._kept = os.dup(2)
        self.stream: TextIO = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
        self._read_end, write_end = os.pipe()
        with suppress(OSError):  # unprivileged processes share a limited amount of such memory
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(write_end, False)
        os.dup2(write_end, 2)
        os.close(write_end)
        faulthandler.enable(self._kept)
        self._thread = threading.Thread(target=self._run, name="stderr", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Restores standard error, and logs everything that was written meanwhile."""
        sys.stderr.flush()
        faulthandler.disable()
        os.dup2(self._kept, 2)  # ends the pipe
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        left = b""
        while chunk := os.read(self._read_end, 1 << 16):
            *lines, left = (left + chunk).split(b"\n")
            if len(left) > LINE_BYTES_MAX:
                lines, left = [*lines, left], b""
            for line in lines:
                _log(line)
        _log(left)
        os.close(self._read_end)


def _log(line: bytes) -> None:
    text = line.decode("utf-8", "backslashreplace").rstrip()
    if not text or any(harmless in text for harmless in _HARMLESS):
        return
    found = _LINE.fullmatch(text)
    if found is None:
        logger.warning("%s", text)
    else:
        logger.log(_LEVELS[found[1]], "%s: %s", found[2], found[3])
