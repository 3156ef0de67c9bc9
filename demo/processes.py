"""Real processes, started and ended without fail: each in a process group of its own, with its output in a log file.

A process is ready when it says so (a line in its log) or answers so (a probe); both have a deadline, and a start that
fails raises with the last lines of the log. Whatever happens, even Ctrl-C in the middle of a stop, `end_all` leaves no
member of any group alive, and if this program is killed itself, `demo.orphans` ends them. Only groups that this module
made are ever signalled. Linux only (/proc); knows nothing of Larder.
"""

import atexit
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

POLL_S = 0.05
KILL_DEADLINE_S = 10.0
TAIL_LINES = 25


class ProcessError(RuntimeError):
    """A process did not start, or did not end; the message has the last lines of its log."""


class Process:
    """One process and what it started, as one group."""

    def __init__(
        self, name: str, argv: Sequence[str | Path], *, log_dir: Path, env: Mapping[str, str], again: bool = False
    ) -> None:
        """`again`: a new life of a process of that name; its output is appended to the former's."""
        self.name = name
        self.log = log_dir / f"{name}.log"
        if not again:
            self.log.write_bytes(b"")
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self._popen = subprocess.Popen(
                [str(arg) for arg in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=log_dir,
                start_new_session=True,
            )
        self._started = time.monotonic()
        _tell_heir(f"+{self.pid}")

    @property
    def pid(self) -> int:
        """Process id, and id of the group."""
        return self._popen.pid

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._started

    def running(self) -> bool:
        return self._popen.poll() is None

    def output(self) -> str:
        """What this life of the process has written so far."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def tail(self, lines: int = TAIL_LINES) -> str:
        return "\n".join(self.output().splitlines()[-lines:])

    def wait_line(self, pattern: str, deadline_s: float) -> re.Match[str]:
        """Wait for a line that matches `pattern` from its start; raises ProcessError when it ends or is late."""
        line = re.compile(f"^{pattern}.*\n", re.MULTILINE)
        found: list[re.Match[str]] = []

        def look() -> bool:
            match = line.search(self.output())
            found.extend([match] if match else [])
            return match is not None

        self.wait_until(look, deadline_s)
        return found[0]

    def wait_until(self, ready: Callable[[], bool], deadline_s: float) -> None:
        """Poll `ready`, deadline counted from the start of the process."""
        while not ready():
            if not self.running():
                raise ProcessError(f"{self.name} ended with status {self._popen.returncode}.{self._last_lines()}")
            if self.age_s > deadline_s:
                raise ProcessError(f"{self.name} was not ready after {deadline_s:.0f} s.{self._last_lines()}")
            time.sleep(POLL_S)

    def _last_lines(self) -> str:
        return f" The last lines of {self.log}:\n{self.tail()}"

    def wait(self, deadline_s: float) -> int:
        """Its exit status, once it has ended by itself; raises subprocess.TimeoutExpired."""
        return self._popen.wait(deadline_s)

    def pause(self) -> None:
        """SIGSTOP: alive, but silent until `resume`."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def stop(self, grace_s: float = 10.0) -> int:
        """SIGTERM to the process, time for it and its children to end, SIGKILL to what remains. Its exit status."""
        deadline = time.monotonic() + grace_s
        try:
            self._popen.terminate()
            while self._popen.poll() is None or self.members():
                if time.monotonic() > deadline:
                    break
                time.sleep(POLL_S)
        finally:
            self.kill()
        return self._popen.returncode

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when no member is alive."""
        deadline = time.monotonic() + KILL_DEADLINE_S
        while members := self.members():
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name}: processes {members} survive SIGKILL")
            os.killpg(self.pid, signal.SIGKILL)
            self._popen.poll()  # reap, so that the group can vanish
            time.sleep(0.01)
        self._popen.wait(KILL_DEADLINE_S)
        _tell_heir(f"-{self.pid}")

    def members(self) -> list[int]:
        """Pids of the group that are alive (a zombie is not)."""
        alive = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                state, _parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            if int(group) == self.pid and state != "Z":
                alive.append(int(entry.name))
        return alive


def end_all(processes: Iterable[Process]) -> dict[str, int]:
    """Stop them, the last started first (each may still need the earlier ones to leave in order). Exit statuses.

    Nothing survives, whatever interrupts the waiting.
    """
    order = list(processes)[::-1]
    try:
        return {process.name: process.stop() for process in order}
    finally:
        for process in order:
            process.kill()


def _tell_heir(line: str) -> None:
    with suppress(BrokenPipeError):  # somebody killed it: then nobody inherits
        _heir(os.getpid()).write(f"{line}\n".encode())


@cache
def _heir(_parent: int) -> IO[bytes]:
    """The standard input of `demo.orphans`, which outlives this process. A forked child starts one of its own."""
    heir = subprocess.Popen(
        [sys.executable, "-I", "-S", Path(__file__).with_name("orphans.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd="/",
        start_new_session=True,  # Ctrl-C is not for it
    )
    atexit.register(heir.communicate)
    assert heir.stdin is not None
    return heir.stdin
