"""What libraries write to standard error becomes part of the log, in real processes that write much, or crash."""

import json
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, ctypes, logging, os, sys
from services.common.service import announce, run
from larder.errors import LarderError

async def main(stop):
    announce("thing ready: port 7")
    logging.getLogger("a.b").info("logged")
    {body}

sys.exit(run(main, prog="thing", log_level="info", log_format="{format}", capture=True))
"""
GLOG = "E1126 00:14:35.552383 18111 transfer_metadata_plugin.cpp:1030] connect() failed"
ABSL = "I0000 00:00:1732579200.123456    4711 chttp2_transport.cc:1403] Got goaway"
HARMLESS = (
    "E1126 00:14:35.552151 18111 transfer_metadata.cpp:1098] Local segment descriptor not found",
    "WARNING: Logging before InitGoogleLogging() is written to STDERR",
)


def run(body: str, format: str = "json") -> tuple[int, str, list[str]]:
    """Status, what stdout said, and the lines of stderr."""
    program = PROGRAM.format(body=body, format=format)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr.splitlines()


def write(*lines: str) -> str:
    return "; ".join(f"os.write(2, {(line + chr(10)).encode()!r})" for line in lines)


def test_all_of_it_is_json_and_what_is_harmless_is_swallowed() -> None:
    status, ready, errors = run(write(GLOG, *HARMLESS, ABSL, "plain\ttext") + "; print('told', file=sys.stderr)")
    assert status == 0
    assert json.loads(ready)["message"] == "thing ready: port 7"
    said = [json.loads(line) for line in errors]
    assert all(line["service"] == "thing" for line in said)
    assert sorted((line["level"], line["logger"], line["message"]) for line in said) == [
        ("error", "stderr", "transfer_metadata_plugin.cpp:1030: connect() failed"),
        ("info", "a.b", "logged"),
        ("info", "stderr", "chttp2_transport.cc:1403: Got goaway"),
        ("warning", "stderr", "plain\ttext"),
        ("warning", "stderr", "told"),
    ]


def test_as_text_it_stands_in_the_logs_own_lines_and_the_ready_line_is_as_ever() -> None:
    status, ready, errors = run(write(GLOG, *HARMLESS), "text")
    assert (status, ready) == (0, "thing ready: port 7\n")
    assert len(errors) == 2
    assert any(
        line.endswith("thing ERROR stderr: transfer_metadata_plugin.cpp:1030: connect() failed") for line in errors
    )


def test_what_was_written_last_is_not_lost_without_a_line_end() -> None:
    _, _, errors = run("os.write(2, b'the end')")
    assert json.loads(errors[-1])["message"] == "the end"


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_line_that_says_why_it_ended_has_the_logs_form(format: str) -> None:
    status, _, errors = run("raise LarderError('port 7 is taken')", format)
    assert status == 1
    if format == "text":
        assert errors[-1] == "thing: port 7 is taken"
    else:
        last = json.loads(errors[-1])
        assert (last["level"], last["message"]) == ("critical", "thing: port 7 is taken")


def test_a_library_that_writes_much_while_it_holds_the_interpreters_lock_does_not_hang_the_process() -> None:
    status, _, errors = run("ctypes.PyDLL(None).write(2, (b'x' * 99 + bytes([10])) * 80_000, 8_000_000)")
    assert status == 0
    said = [json.loads(line)["message"] for line in errors]
    assert 100 <= said.count("x" * 99) < 80_000, "what did not fit is lost, and nothing waits for it"


def test_a_crash_leaves_its_trace() -> None:
    status, _, errors = run("ctypes.string_at(0)")
    assert status == -signal.SIGSEGV
    assert any("Segmentation fault" in line for line in errors)
