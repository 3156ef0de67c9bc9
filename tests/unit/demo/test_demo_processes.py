"""Processes of the demo and of the end-to-end tests: ready or told why not, never outliving whoever started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.orphans import GRACE_S
from demo.processes import Process, ProcessError, end_all

ROOT = Path(__file__).resolve().parents[3]
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready: deaf', flush=True)
time.sleep(60)
"""
TIDY = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print('ready', flush=True)
time.sleep(60)
"""
ABORTED = f"""
import os, pathlib, signal, sys
from demo.processes import Process
argv, here = [sys.executable, '-c', {STUBBORN!r}], pathlib.Path.cwd()
ended, left = [Process(name, argv, log_dir=here, env=os.environ) for name in 'ab']
ended.kill()
left.wait_line('ready', 10)
left.pause()
print(left.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}])"


class Started(list[Process]):
    def __call__(self, code: str, *, again: bool = False) -> Process:
        process = Process("part", [sys.executable, "-c", code], log_dir=Path.cwd(), env=dict(os.environ), again=again)
        self.append(process)
        return process


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.chdir(tmp_path)
    started = Started()
    yield started
    end_all(started)
    assert not any(process.members() for process in started)


def test_the_ready_line_is_found(start: Started) -> None:
    process = start("print('noise'); print('ready: at 7', flush=True); import time; time.sleep(60)")
    assert process.wait_line(r"ready: at (?P<port>\d+)", 10)["port"] == "7"


def test_a_start_that_fails_shows_the_last_lines(start: Started) -> None:
    with pytest.raises(ProcessError, match=r"part ended with status 3(?s:.*)because"):
        start("import sys; print('because', flush=True); sys.exit(3)").wait_line("ready", 10)


def test_a_start_that_is_late_shows_the_last_lines(start: Started) -> None:
    process = start("import time; print('thinking', flush=True); time.sleep(60)")
    process.wait_line("thinking", 10)
    with pytest.raises(ProcessError, match=r"not ready after 0 s(?s:.*)thinking"):
        process.wait_line("ready", 0)


def test_a_second_life_does_not_see_the_words_of_the_first(start: Started) -> None:
    start("print('ready: one', flush=True)").wait_line("ready", 10)
    assert (
        start("print('ready: two', flush=True); import time; time.sleep(60)", again=True).wait_line("ready: (.*)", 10)[
            1
        ]
        == "two"
    )


def test_stop_gives_time_and_the_status(start: Started) -> None:
    process = start(TIDY)
    process.wait_line("ready", 10)
    assert process.stop() == 5


def test_what_ignores_sigterm_is_killed_with_its_children(start: Started) -> None:
    process = start(PARENT)
    process.wait_line("ready: deaf", 10)
    assert len(process.members()) == 2
    assert process.stop(grace_s=0.2) == -signal.SIGTERM  # the parent listened, its child did not
    assert process.members() == []


def test_a_paused_process_is_killed_all_the_same(start: Started) -> None:
    process = start(STUBBORN)
    process.wait_line("ready", 10)
    process.pause()
    assert process.stop(grace_s=0.1) == -signal.SIGKILL


def test_an_interrupted_stop_leaves_nothing(start: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = start(STUBBORN), start(STUBBORN, again=True)
    second.wait_line("ready", 10)

    def interrupted(grace_s: float = 0) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(second, "stop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            end_all([first, second])
    assert first.members() == second.members() == []


def test_a_program_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABORTED],
        cwd=tmp_path,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    group = Path(f"/proc/{int(done.stdout)}")
    assert group.exists()
    until = time.monotonic() + GRACE_S + 10
    while group.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
