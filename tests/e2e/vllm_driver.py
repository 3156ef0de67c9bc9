"""A vLLM engine with the connector inside one process, driven step by step over a Unix socket.

`python vllm_driver.py SOCKET OPTIONS`, OPTIONS being JSON for vllm.LLM. Messages are JSON: {"do": name, ...} in, the
result or {"error": text} out. Driving the engine's steps by hand is what lets a test meet it in the middle of a load.
Loads can be made slow on purpose here, in the test's own process; the connector has no such switch.
"""

import asyncio
import json
import os
import sys
import time
import traceback
from multiprocessing.connection import Listener
from typing import Any

from demo.cluster import ENGINE_ENV

os.environ.update(ENGINE_ENV | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})

DRAIN_S = 20.0


class Driver:
    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM
        from vllm.config import KVTransferConfig

        transfer = options.pop("kv_transfer_config")
        self._llm = LLM(
            **options,
            kv_transfer_config=transfer and KVTransferConfig(**transfer),
            enforce_eager=True,
            distributed_executor_backend="uni",
            disable_log_stats=False,
        )
        self._engine = self._llm.llm_engine
        self._scheduler = self._engine.engine_core.engine_core.scheduler

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[dict[str, Any]]:
        """Answers at temperature 0 to prompts sent together; returns when the engine has nothing left to do."""
        answers = self._generate(prompts, max_tokens)
        self.drain()
        return answers

    def in_turn(self, prompts: list[list[int]], max_tokens: int) -> list[dict[str, Any]]:
        """The same, one prompt after the other, at once: what the former left to do may go on meanwhile."""
        answers = [self._generate([prompt], max_tokens)[0] for prompt in prompts]
        self.drain()
        return answers

    def _generate(self, prompts: list[list[int]], max_tokens: int) -> list[dict[str, Any]]:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        started = time.monotonic()
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        seconds = time.monotonic() - started
        return [
            {"tokens": list(o.outputs[0].token_ids), "cached": o.num_cached_tokens, "seconds": seconds} for o in outputs
        ]

    def drain(self) -> float:
        """Step until no save or load is under way, as a server's engine does by itself; how long that took."""
        started = time.monotonic()
        while self._scheduler.has_requests():
            self._engine.step()
            time.sleep(0.001)
            if time.monotonic() - started > DRAIN_S:
                raise RuntimeError("the engine still has requests or saves")
        return time.monotonic() - started

    def until_saved(self, prompt: list[int]) -> None:
        """Ask a prompt that the engine has not computed yet, until something was saved."""
        started = time.monotonic()
        name = "larder_client_put_objects_total"
        before = self.counts().get(name, 0)
        while self.counts().get(name, 0) == before:
            self.reset()
            self.generate([prompt], 1)
            time.sleep(0.2)
            if time.monotonic() - started > DRAIN_S:
                raise RuntimeError("nothing was saved")

    def abort_in_load(self, prompt: list[int]) -> str:
        """Send a prompt, abort it when its load is under way, and drain; the state it was in when it was aborted."""
        from vllm import SamplingParams

        self._engine.add_request("abort", {"prompt_token_ids": prompt}, SamplingParams(max_tokens=8))
        deadline = time.monotonic() + DRAIN_S
        state = ""
        while state != "WAITING_FOR_REMOTE_KVS":
            self._engine.step()
            (request,) = self._scheduler.requests.values()
            state = request.status.name
            if time.monotonic() > deadline:
                raise RuntimeError(f"no load was seen, the request is {state}")
        self._engine.abort_request(["abort"])
        self.drain()
        return state

    def reset(self) -> bool:
        """Empty the engine's own prefix cache; False while blocks are in use."""
        return bool(self._llm.reset_prefix_cache())

    def used_blocks(self) -> int:
        """Blocks somebody holds; vLLM's null block is always one of them."""
        pool = self._scheduler.kv_cache_manager.block_pool
        return int(pool.num_gpu_blocks - pool.get_num_free_blocks() - 1)

    def counts(self) -> dict[str, float]:
        """The engine's and the connector's counters so far, and how many durations were counted; over all labels."""
        from prometheus_client import REGISTRY

        wanted = ("larder_client_", "vllm:num_preemptions", "vllm:external_prefix_cache_hits")
        samples = (s for family in REGISTRY.collect() for s in family.samples)
        counts: dict[str, float] = {}
        for sample in samples:
            if sample.name.startswith(wanted) and sample.name.endswith(("_total", "_seconds_count")):
                counts[sample.name] = counts.get(sample.name, 0) + sample.value
        return counts

    def switch_interval(self, seconds: float) -> None:
        """How long a thread of this process that does not stop by itself keeps the others from running."""
        sys.setswitchinterval(seconds)

    def slow_loads(self, seconds: float) -> None:
        """Make every load wait before its first byte; 0: no longer."""
        from larder.vllm.transfer import DirectPath

        if not hasattr(self, "_load"):
            self._load = DirectPath.load
        load = self._load

        async def slow(path: DirectPath, *args: Any) -> None:
            await asyncio.sleep(seconds)
            await load(path, *args)

        DirectPath.load = slow if seconds else load  # type: ignore[method-assign]

    def shutdown(self) -> None:
        """End the engine as a server's is ended."""
        self._engine.engine_core.shutdown()


def main() -> None:
    path, options = sys.argv[1], json.loads(sys.argv[2])
    with Listener(path, "AF_UNIX") as listener:
        driver = Driver(options)
        print("driver ready", flush=True)
        with listener.accept() as connection:
            while True:
                try:
                    request = json.loads(connection.recv_bytes())
                except EOFError:
                    break
                try:
                    reply = getattr(driver, request.pop("do"))(**request)
                except Exception:
                    reply = {"error": traceback.format_exc()}
                connection.send_bytes(json.dumps(reply).encode())
    driver.shutdown()


if __name__ == "__main__":
    main()
