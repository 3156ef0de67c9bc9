"""The compose file as an operator uses it, from the repository's root, in a project of the test's own.

Nothing of the operator's `.env` or shell gets in: settings are the test's. Ports are free ones, pools lie in a folder
of the test's in /dev/shm. Leaving the `with` block takes the project down, volumes and all.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.compose.daemon import Docker, DockerError
from tests.free_ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "larder-test"
LARDER = ("master", "node-1", "node-2", "node-3", "proxy")
ENGINES = ("prefill", "decode")
POLL_S = 0.25
RESTARTS_MAX = 3


class Cluster:
    def __init__(self, docker: Docker, settings: dict[str, str]) -> None:
        self.docker = docker
        self.pool_dir = Path(tempfile.mkdtemp(prefix="larder-compose-", dir="/dev/shm"))
        self.pool_dir.chmod(0o1777)
        with free_ports(5) as range_:  # not the system's own choice, which others get too until these are used
            first = int(range_.partition("-")[0])
        names = ("PROXY", "MASTER", "MASTER_METRICS", "PROMETHEUS")
        ports = {name: str(port) for port, name in enumerate(names, first)}
        self.proxy, self.prometheus = f"127.0.0.1:{ports['PROXY']}", f"127.0.0.1:{ports['PROMETHEUS']}"
        self.metrics = f"127.0.0.1:{ports['MASTER_METRICS']}"
        self.settings = {
            "POOL_DIR": str(self.pool_dir),
            "LARDER_STORAGE_NODE_DRAM": "256MB",
            "NODE_MEMORY": "768m",
            "LARDER_STORAGE_NODE_MASTER": f"127.0.0.1:{ports['MASTER']}",  # of node.yml, like what follows
            "LARDER_STORAGE_NODE_NODE_ID": "node-4",
            "LARDER_STORAGE_NODE_METRICS_PORT": str(first + len(names)),
            **{f"{name}_PORT": port for name, port in ports.items()},
            **settings,
        }
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        self.compose = ["docker", "compose"] if plugin else ["docker-compose"]
        self._env_file = docker.work_dir / "settings.env"
        self._env_file.write_text("".join(f"{name}={value}\n" for name, value in self.settings.items()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            logs = self.run("--profile", "demo", "logs", "--no-color", "--timestamps")
            logs += self.run_node("logs", "--no-color", "--timestamps")
            (self.docker.work_dir / "services.log").write_text(logs)
            self.run_node("down", "--timeout", "30")
            self.run("--profile", "demo", "down", "--volumes", "--timeout", "30")
        finally:
            shutil.rmtree(self.pool_dir, ignore_errors=True)
            self._env_file.unlink(missing_ok=True)

    def run(self, *args: str, project: str = PROJECT, timeout_s: float = 300.0) -> str:
        """`docker compose` or `docker-compose`, whichever is here; raises DockerError unless its status is 0."""
        argv = [*self.compose, "--env-file", str(self._env_file), "--project-name", project, *args]
        env = {name: value for name, value in self.docker.env.items() if re.match("PATH$|HOME$|DOCKER_", name)}
        env |= {"COMPOSE_HTTP_TIMEOUT": f"{timeout_s:.0f}"}  # of 1.29: else a busy machine's 60 s
        result = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
        if result.returncode:
            said = (result.stdout + result.stderr)[-4000:]
            raise DockerError(f"{' '.join(argv)}: status {result.returncode}\n{said}")
        return result.stdout

    def up(self, *services: str, timeout_s: float = 300.0) -> None:
        self.run("--profile", "demo", "up", "--detach", *services, timeout_s=timeout_s)

    def run_node(self, *args: str) -> str:
        """The same with node.yml, as on another host: its node-4 comes to this cluster's master."""
        return self.run("--file", "deploy/node.yml", *args, project=f"{PROJECT}-node")

    def inspect(self, service: str) -> dict[str, Any]:
        label = "label=com.docker.compose"
        of_it = ("--filter", f"{label}.project={PROJECT}", "--filter", f"{label}.service={service}")
        container = self.docker.run("ps", "--all", "--quiet", *of_it)
        if not container:
            raise DockerError(f"{service} has no container")
        described: list[dict[str, Any]] = json.loads(self.docker.run("inspect", container))
        return described[0]

    def kill(self, service: str) -> None:
        self.docker.run("kill", self.inspect(service)["Id"])

    def crash(self, service: str) -> None:
        """The service's own process gets a SIGKILL that Docker knows nothing of, as from a fault of its own."""
        init = self.inspect(service)["State"]["Pid"]
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        for pid in children:
            os.kill(int(pid), 9)

    def wait_healthy(self, *services: str, deadline_s: float) -> None:
        """Raises DockerError when one is not healthy in time, or does not stay up, with the end of its log."""
        deadline = time.monotonic() + deadline_s
        for service in services:
            while (state := self.health(service)) != "healthy":
                if time.monotonic() > deadline or self.inspect(service)["RestartCount"] > RESTARTS_MAX:
                    logs = self.run("--profile", "demo", "logs", "--tail", "30", service)
                    raise DockerError(f"{service} is {state}, or starts again and again\n{logs}")
                time.sleep(POLL_S)

    def health(self, service: str) -> str:
        """healthy, starting, unhealthy; or what the container is instead of running."""
        state = self.inspect(service)["State"]
        return str(state["Health"]["Status"] if state["Status"] == "running" else state["Status"])


def get_json(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
        return json.load(response)


def wait_until(what: str, holds: Callable[[], bool], deadline_s: float) -> None:
    """Polls `holds()`; raises DockerError that says what did not come to be."""
    deadline = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > deadline:
            raise DockerError(f"after {deadline_s:.0f} s it does not hold that {what}")
        time.sleep(POLL_S)
