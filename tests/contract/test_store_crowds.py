"""More calls at once than anybody counts with: all are served, also by a master that was away for a moment."""

import asyncio
import os
import signal
import threading
from collections import Counter

import larder
import pytest

from demo.cluster import Cluster

CALLS = 2000


@pytest.mark.parametrize("paused_s", [0.0, 1.5])
async def test_thousands_of_calls_at_once_are_all_served(cluster: Cluster, key: str, paused_s: float) -> None:
    async with larder.aio.connect(cluster.master, timeout_s=20) as store:
        assert await store.get(key) is None  # and stays a miss, whatever the nodes do meanwhile
        if paused_s:
            master = cluster.processes["master"].pid
            os.kill(master, signal.SIGSTOP)
            asyncio.get_running_loop().call_later(paused_s, os.kill, master, signal.SIGCONT)
        calls = [store.get(key) if number % 2 else store.exists([key]) for number in range(CALLS)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert Counter(map(repr, answers)) == {"None": CALLS // 2, "[False]": CALLS // 2}


def test_hundreds_of_threads_share_a_store(cluster: Cluster, key: str) -> None:
    with larder.connect(cluster.master, timeout_s=20) as store:
        store.put(key, b"data")
        answers: list[object] = []
        threads = [threading.Thread(target=lambda: answers.append(store.get(key))) for _ in range(300)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert answers == [b"data"] * 300
