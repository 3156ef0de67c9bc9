"""A vLLM engine in a process of its own, driven step by step: the other end of vllm_driver.py."""

import json
import random
import sys
from collections.abc import Callable
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, Self

from demo.processes import Process
from demo.tiny_model import VOCABULARY

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 32
CHUNK = 64
KV_BLOCKS = 60  # a request of 1,024 tokens fits, ten of 350 do not
DRIVER = Path(__file__).with_name("vllm_driver.py")
REPLY_DEADLINE_S = 120.0
START_DEADLINE_S = 240.0


def connector(master: str, **settings: Any) -> dict[str, Any]:
    """vLLM's kv_transfer_config; kv_role and kv_load_failure_policy are vLLM's, the rest are the connector's."""
    return {
        "kv_connector": "LarderConnector",
        "kv_connector_module_path": "larder.vllm",
        "kv_role": settings.pop("kv_role", "kv_both"),
        "kv_load_failure_policy": settings.pop("kv_load_failure_policy", "recompute"),
        "kv_connector_extra_config": {"master": master, "chunk_blocks": CHUNK // BLOCK, **settings},
    }


class Engine:
    """An engine in a process; every method of the driver is one here, once it is `ready`."""

    def __init__(
        self,
        name: str,
        work_dir: Path,
        model: Path,
        master: str = "",
        *,
        kv_blocks: int = KV_BLOCKS,
        transfer: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """`settings` are the connector's, and vLLM's kv_role; `transfer`: all of kv_transfer_config. Neither: none."""
        options = {
            "model": str(model),
            "dtype": "float32",
            "max_model_len": 1024,
            "max_num_seqs": 16,
            "block_size": BLOCK,
            "num_gpu_blocks_override": kv_blocks,
            "kv_transfer_config": transfer or (connector(master, **settings) if master else None),
        }
        self.master_port = int(master.rpartition(":")[2] or 0)
        self._socket = str(work_dir / f"{name}.sock")
        argv = [sys.executable, DRIVER, self._socket, json.dumps(options)]
        # Under its user's HOME vLLM remembers what it found out about a model's class: half of a start.
        path = f"{ROOT}:{ROOT / 'clients/python'}"
        env = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": path}
        self.process = Process(name, argv, log_dir=work_dir, env=env)
        self._connection: Connection | None = None

    def ready(self) -> Self:
        self.process.wait_line("driver ready", START_DEADLINE_S)
        self._connection = Client(self._socket, "AF_UNIX")
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            assert self._connection is not None, "ready() first"
            self._connection.send_bytes(json.dumps({"do": name, **arguments}).encode())
            if not self._connection.poll(REPLY_DEADLINE_S):
                raise TimeoutError(f"no answer to {name}: {self.process.tail()}")
            reply = json.loads(self._connection.recv_bytes())
            assert not (isinstance(reply, dict) and "error" in reply), reply["error"]
            return reply

        return call

    def ask(self, prompt: list[int], max_tokens: int = 16) -> dict[str, Any]:
        [answer] = self.generate(prompts=[prompt], max_tokens=max_tokens)
        return dict(answer)

    def hits(self) -> float:
        """Tokens that the connector was told to load, so far."""
        return float(self.counts().get("larder_client_hit_tokens_total", 0))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self.process.stop(grace_s=20)


def prompt_of(tokens: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(5, VOCABULARY) for _ in range(tokens)]


def whole_blocks(tokens: int) -> int:
    return tokens // BLOCK * BLOCK
