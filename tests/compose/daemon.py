"""A Docker daemon to test with: the one that runs, else one of our own, which goes when the test does.

Our own leaves the machine's firewall, routing and bridges as they are, and keeps its images in the work directory, so
that the next run need not build them again. Needs root. Knows nothing of Larder.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

START_S = 60.0
STOP_S = 60.0
# Containers reach each other over the bridge of their network, and tests reach them through docker-proxy.
APART = ("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false")


class DockerError(RuntimeError):
    """Docker did not do what it was told; the message has what it said."""


class Docker:
    """`docker` with the daemon at hand: `with Docker(work_dir) as docker: docker.run("ps")`."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir.absolute()
        self.env = dict(os.environ)
        self.is_own = False
        self._popen: subprocess.Popen[bytes] | None = None
        self._run_dir: Path | None = None  # short: a socket's path has at most 107 characters

    def __enter__(self) -> Self:
        if self.answers():
            return self
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def answers(self) -> bool:
        return self.call("version", timeout_s=10.0).returncode == 0

    def run(self, *args: str, stdin: bytes | None = None, timeout_s: float = 120.0) -> str:
        """What it prints; raises DockerError unless its status is 0."""
        result = self.call(*args, stdin=stdin, timeout_s=timeout_s)
        if result.returncode:
            said = (result.stdout + result.stderr).decode(errors="replace")
            raise DockerError(f"docker {' '.join(args)}: status {result.returncode}\n{said[-4000:]}")
        return result.stdout.decode(errors="replace").strip()

    def call(self, *args: str, stdin: bytes | None = None, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["docker", *args], input=stdin, env=self.env, capture_output=True, timeout=timeout_s, check=False
        )

    def has_image(self, name: str) -> bool:
        """Whether it is here, or can be had from a registry."""
        return any(self.call(*do, name, timeout_s=600.0).returncode == 0 for do in (("image", "inspect"), ("pull",)))

    def _start(self) -> None:
        if os.geteuid() or not shutil.which("dockerd"):
            raise DockerError("no Docker daemon answers, and to start one takes dockerd and root")
        self._run_dir = Path(tempfile.mkdtemp(prefix="larder-docker-"))
        self.work_dir.mkdir(parents=True, exist_ok=True)
        socket = f"unix://{self._run_dir}/docker.sock"
        log = self.work_dir / "dockerd.log"
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                ["dockerd", f"--host={socket}", f"--pidfile={self._run_dir}/pid", f"--exec-root={self._run_dir}/exec",
                 f"--data-root={self.work_dir}/docker", *APART],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.is_own = True
        self.env["DOCKER_HOST"] = socket
        deadline = time.monotonic() + START_S
        while not self.answers():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise DockerError(f"dockerd does not start. The last lines of {log}:\n{last}")
            time.sleep(0.2)

    def _stop(self) -> None:
        if self._popen is not None:
            self._popen.terminate()
            try:
                self._popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._popen.pid, signal.SIGKILL)
                self._popen.wait(STOP_S)
            self._popen = None
        if self._run_dir is not None:
            for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
                if line.split()[4].startswith(f"{self._run_dir}/"):  # dockerd leaves its network namespaces mounted
                    subprocess.run(["umount", line.split()[4]], check=False)
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None
