"""A whole cluster of real processes on this machine: master, storage nodes, vLLM engines on the CPU, proxy.

    with Cluster(work_dir) as cluster:
        cluster.start_master()
        node = cluster.start_node("node-1")
        prefill = cluster.start_engine("prefill", model, kv_role="kv_both")
        ...
        cluster.wait_ready()

`start_*` returns at once if nothing about the process needs to be known yet, so that slow starts overlap; `wait_ready`
waits for all of them. Every port is free, every address is loopback, logs are in `work_dir`, pools in a directory
that is removed with the cluster. Leaving the `with` block ends every process, whatever happened inside.
"""

import http.client
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo.processes import Process, end_all

MODEL_NAME = "tiny"
HOST = "127.0.0.1"
START_DEADLINE_S = 60.0
ENGINE_DEADLINE_S = 300.0  # three engines that start together on two busy cores
DTYPE = "float32"  # in bfloat16 the batch's shape alone, without any connector, changed 1 answer in 40; here 0 in 200
BLOCK_TOKENS = 128  # vLLM's default on a CPU
KV_BLOCKS = 128  # more than any test needs, and saves clearing a gigabyte at the start
# Settings of whoever starts the cluster must not leak into it.
FOREIGN_ENV = ("LARDER_", "VLLM_", "MOONCAKE_", "MC_", "PREFILL_ENDPOINTS", "DECODE_ENDPOINTS", "ADMIN_API_KEY")
ENGINE_ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": HOST,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # for POST /reset_prefix_cache
}


class Cluster:
    def __init__(
        self,
        work_dir: Path,
        *,
        say: Callable[[str], None] = lambda text: None,
        within: Callable[[str], Sequence[str]] = lambda name: (),
    ) -> None:
        """`within`: the prefix to start the process of that name with, such as `nsenter --net=...`; it must exec."""
        work_dir.mkdir(parents=True, exist_ok=True)
        self.work_dir = work_dir.absolute()
        self.pool_dir = Path(tempfile.mkdtemp(prefix="larder-", dir="/dev/shm"))
        self.master = ""  # HOST:PORT, once it is ready
        self.processes: dict[str, Process] = {}
        self.addresses: dict[str, str] = {}  # HOST:PORT where each process serves its API
        self.metrics: dict[str, str] = {}  # HOST:PORT where each process serves /metrics
        self._pending: dict[str, Callable[[], object]] = {}
        self._say = say
        self._within = within

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> dict[str, int]:
        """End every process and remove the pools. Exit statuses by name; empty if already closed."""
        processes, self.processes = self.processes, {}
        try:
            return end_all(processes.values())
        finally:
            shutil.rmtree(self.pool_dir, ignore_errors=True)

    # -- starting -----------------------------------------------------------------------------------------------------

    def start_master(self, *flags: str, port: int = 0) -> Process:
        """Start the master and wait for it: everything else needs its address."""
        process = self._spawn("master", "master", "--port", str(port), "--metrics-port", "0", *flags)
        self._when_ready(process, r"master ready: grpc (?P<address>[^\s,]+), metrics http://(?P<metrics>[^\s/]+)")
        self.wait_ready()
        self.master = self.addresses["master"]
        return process

    def start_node(self, node_id: str, *flags: str, dram: str = "128MB") -> Process:
        """Start a storage node, or start it again under the same id."""
        process = self._spawn(
            node_id, "storage-node", "--master", self.master, "--node-id", node_id, "--dram", dram,
            "--pool-dir", str(self.pool_dir), "--metrics-port", "0", *flags,
        )  # fmt: skip
        self._when_ready(process, r"storage-node ready:.*? metrics http://(?P<metrics>[^\s/]+)")
        return process

    def start_engine(
        self,
        name: str,
        model: Path,
        *,
        kv_role: str | None = None,
        extra_config: dict[str, Any] | None = None,
        connector: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        own_worker: bool = True,
        port: int = 0,
    ) -> Process:
        """Start a vLLM server, or start it again; with `kv_role` None it is a plain one, without a connector.
        `connector`: name and module of another one, instead of Larder's.

        The model runs in its own process, vLLM's default on a CPU, or, with `own_worker` False, in the engine core's,
        its default on one GPU: that starts in two thirds of the time.
        """
        port = port or free_port()
        flags = [
            "--served-model-name", MODEL_NAME, "--host", HOST, "--port", str(port),
            "--max-num-seqs", "16", "--enforce-eager", "--dtype", DTYPE,
            "--num-gpu-blocks-override", str(KV_BLOCKS), "--enable-prompt-tokens-details",
        ]  # fmt: skip
        if kv_role is not None:
            larder = {"kv_connector": "LarderConnector", "kv_connector_module_path": "larder.vllm"}
            extra = extra_config or {}
            config = (connector or larder) | {
                "kv_role": kv_role,
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": extra if connector else {"master": self.master} | extra,
            }
            flags += ["--kv-transfer-config", json.dumps(config)]
        core = {} if own_worker else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        process = self._spawn(name, "vllm", "serve", str(model.absolute()), *flags, env=ENGINE_ENV | core | (env or {}))
        address = f"{HOST}:{port}"

        def wait() -> None:
            process.wait_until(lambda: answers(address, "/health"), ENGINE_DEADLINE_S)
            self.addresses[name] = self.metrics[name] = address

        self._pending[name] = wait
        return process

    def start_proxy(self, *flags: str, prefill: list[str], decode: list[str], port: int = 0) -> Process:
        """Start the proxy in front of the engines of these names, which must be ready."""
        argv = ["proxy", "--host", HOST, "--port", str(port), "--model", MODEL_NAME]
        argv += [part for name in prefill for part in ("--prefill", self.addresses[name])]
        argv += [part for name in decode for part in ("--decode", self.addresses[name])]
        process = self._spawn("proxy", *argv, *flags)
        self._when_ready(process, r"proxy ready: http://(?P<address>[^\s/]+)")
        return process

    def start_program(
        self, name: str, program: str, *args: str, ready: str, env: dict[str, str] | None = None
    ) -> Process:
        """Start any other program of this environment; `ready` is the pattern of the line that says that it is."""
        process = self._spawn(name, program, *args, env=env)
        self._pending[name] = partial(process.wait_line, ready, START_DEADLINE_S)
        return process

    def wait_ready(self) -> None:
        """Wait for everything started so far; raises ProcessError for the first that fails."""
        while self._pending:
            name = next(iter(self._pending))
            self._pending.pop(name)()
            self._say(f"{name} ready after {self.processes[name].age_s:.1f} s")

    def _spawn(self, name: str, program: str, *args: str, env: dict[str, str] | None = None) -> Process:
        former = self.processes.get(name)
        if former is not None and former.running():
            raise ValueError(f"{name} is running already")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN_ENV)}
        executable = Path(sys.prefix) / "bin" / program
        process = Process(
            name,
            [*self._within(name), executable, *args],
            log_dir=self.work_dir,
            env=clean | (env or {}),
            again=former is not None,
        )
        self.processes[name] = process
        return process

    def _when_ready(self, process: Process, pattern: str) -> None:
        def wait() -> None:
            said = process.wait_line(pattern, START_DEADLINE_S).groupdict()
            self.metrics[process.name] = said.get("metrics") or said["address"]
            self.addresses[process.name] = said.get("address") or said["metrics"]

        self._pending[process.name] = wait


def free_port() -> int:
    """A port nobody listens on now, for servers that cannot tell which port they chose."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(address: str, path: str) -> bool:
    """Whether `GET path` answers 200 within a second."""
    connection = http.client.HTTPConnection(address, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
