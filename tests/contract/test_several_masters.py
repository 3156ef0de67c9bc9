"""Two real masters that nodes and clients name both: only one of them serves, whoever dies and comes back."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import larder
import pytest

from demo.cluster import Cluster, free_port
from tests.contract.commands import run_larder as command

A, B = "master-a", "master-b"
NODES = ("node-1", "node-2")
MOVED_S = 10.0


class Pair(Cluster):
    """Clusters know one master; this one has two, under names of their own, on ports that stay."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ports = {A: free_port(), B: free_port()}
        self.master = ",".join(map(self.at, (A, B)))

    def at(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def start(self, name: str) -> None:
        flags = ("--port", str(self.ports[name]), "--metrics-port", "0", "--lease-ms", "500")
        self._when_ready(
            self._spawn(name, "master", *flags), r"master ready: grpc \S+, metrics http://(?P<metrics>\S+)/"
        )
        self.wait_ready()

    def start_nodes(self, *names: str) -> None:
        for name in names:
            self.start_node(name, dram="64MB")
        self.wait_ready()

    def status(self, *addresses: str) -> tuple[dict[str, object], list[str]]:
        """What `larder status` says of these, and its warnings."""
        done = command("--master", ",".join(addresses), "--format", "json", "status")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert [f"larder: warning: {said}" for said in found["warnings"]] == done.stderr.decode().splitlines()
        return {each["address"]: each["nodes"] for each in found["masters"]}, found["warnings"]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path) as pair:
        yield pair


def until(condition: Callable[[], bool], seconds: float = MOVED_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.1)


def reads(store: larder.Store, key: str) -> bool:
    with contextlib.suppress(larder.Unavailable):
        return store.get(key) == b"data"
    return False


def test_old_and_new_clients_end_at_the_master_that_has_the_nodes(pair: Pair) -> None:
    both = pair.master
    pair.start(A)
    pair.start(B)
    pair.start_nodes(*NODES)
    with larder.connect(both, timeout_s=5) as old, larder.connect(both, timeout_s=5) as idle:
        old.put("key", b"data")
        assert idle.get("key") == b"data", "and it stays with A as long as it is not used"
        assert pair.status(both)[0] == {pair.at(A): 2, pair.at(B): 0}

        pair.processes[A].kill()
        until(lambda: reads(old, "key"))
        pair.start(A)
        counts, said = pair.status(both)
        assert counts == {pair.at(A): 0, pair.at(B): 2}
        assert [pair.at(A) in each and "stands by" in each for each in said] == [True]
        for store in (old, idle):
            assert [store.get("key") for _ in range(5)] == [b"data"] * 5
        for order in (f"{pair.at(A)},{pair.at(B)}", f"{pair.at(B)},{pair.at(A)}"):
            with larder.connect(order) as new:
                assert new.get("key") == b"data"

        pair.processes[B].kill()
        for store in (old, idle):
            until(lambda store=store: reads(store, "key"))  # type: ignore[misc]
        counts, said = pair.status(both)
        assert counts == {pair.at(A): 2, pair.at(B): 0}
        assert [pair.at(B) in each and "does not answer" in each for each in said] == [True]
        with larder.connect(both) as new:
            assert new.get("key") == b"data"


def test_a_fresh_cluster_says_what_it_lacks_and_works_once_a_node_is_there(pair: Pair) -> None:
    pair.start(A)
    pair.start(B)
    with larder.connect(pair.master, timeout_s=1) as store:
        begun = time.monotonic()
        with pytest.raises(larder.Unavailable, match="no master serves") as caught:
            store.get("key")
        assert time.monotonic() - begun < 2
        for name in (A, B):
            assert f"{pair.at(name)}: no storage node is attached to this master" in str(caught.value)
        (said,) = pair.status(pair.at(B))[1]
        assert f"{pair.at(B)} has no storage node" in said
    with larder.connect(pair.master, timeout_s=30) as store, futures.ThreadPoolExecutor(1) as pool:
        put = pool.submit(store.put, "key", b"data")
        pair.start_nodes("node-1")
        assert put.result(30).copies == 1
        assert store.get("key") == b"data"


def test_two_halves_become_one(pair: Pair) -> None:
    """node-2 and node-3 name B alone; node-1 names both, finds A only, and comes over once B answers again."""
    pair.start(A)
    both, pair.master = pair.master, pair.at(B)
    pair.start(B)
    pair.start_nodes("node-2", "node-3")
    pair.processes[B].pause()
    pair.master = both
    pair.start_nodes("node-1")
    assert pair.status(pair.at(A))[0] == {pair.at(A): 1}
    pair.processes[B].resume()
    until(lambda: pair.status(both)[0] == {pair.at(A): 0, pair.at(B): 3}, 20)
