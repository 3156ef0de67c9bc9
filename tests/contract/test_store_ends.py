"""Programs that come to an end: whoever still runs is served, and nobody is told anything of threads or interpreters.

Each case is a process of its own.
"""

import subprocess
import sys

import pytest

from demo.cluster import Cluster

BEGIN = """
import atexit, os, sys, threading, time
import larder
master, transport, key = sys.argv[1:]
store = larder.connect(master, transports=[transport], timeout_s=20)

def use():
    data = os.urandom(8 * 2**20)
    assert store.put(key, data).copies == 1
    assert store.get(key) == data
    buffer = bytearray(len(data))
    assert store.get_into(key, buffer) == len(data)
    assert buffer == data
    with store.view(key) as view:
        assert view == data
    assert store.remove(key)
    print("served")
"""

SCRIPTS = {
    "a thread that begins after the main one has ended": """
def work():
    threading.main_thread().join()
    use()
threading.Thread(target=work).start()
""",
    "a thread that goes on after the main one has ended": """
def work():
    use()
    threading.main_thread().join()
    use()
worker = threading.Thread(target=work)
worker.start()
while not store.stats().get("gets"):
    time.sleep(0.01)
""",
    "a handler of the program's end": """
atexit.register(use)
""",
}


@pytest.mark.parametrize("transport", ["shm", "engine"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_who_still_runs_is_served(store_cluster: Cluster, key: str, name: str, transport: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BEGIN + SCRIPTS[name], store_cluster.master, transport, key],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert set(result.stdout.split()) == {"served"}
