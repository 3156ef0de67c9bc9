"""The life of a service process, as real processes: ready line, drain on a signal, a clear line when it fails."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys
from services.common.service import announce, run
from larder.errors import LarderError

async def main(stop):
    announce("ready")
    {body}

sys.exit(run(main, prog="thing", log_level="info"))
"""


def start(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_main_drain_and_exit_with_0(number: signal.Signals) -> None:
    with start("await stop.wait(); print('drained')") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, "drained\n")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise OSError('port 7 is taken')", "thing: port 7 is taken"),
        ("raise LarderError('no such thing')", "thing: no such thing"),
        ("raise ExceptionGroup('tasks', [OSError('inside a group')])", "thing: inside a group"),
    ],
)
def test_an_expected_error_is_one_line_and_status_1(body: str, line: str) -> None:
    with start(body) as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.splitlines() == [line]


def test_an_unexpected_error_keeps_its_traceback() -> None:
    with start("raise KeyError('lost')") as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" in errors
    assert "KeyError: 'lost'" in errors
