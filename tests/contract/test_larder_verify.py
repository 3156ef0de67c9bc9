"""`larder verify` against a real cluster: bytes that change in a pool behind its back, nodes that fall silent."""

import asyncio
import json
import os
import time
from typing import Any

from larder import connect
from larder.facts import Facts
from larder.keys import encode_key
from larder.rpc import MasterClient
from larder.stats import Stats

from demo.cluster import Cluster
from tests.contract.commands import larder


def facts_of(master: str, key: str) -> Facts:
    async def ask() -> Facts:
        client = MasterClient([master], Stats())
        try:
            (facts,) = (await client.stat([encode_key(key)], deadline=time.monotonic() + 10)).objects
        finally:
            await client.close()
        assert facts is not None
        return facts

    return asyncio.run(ask())


def flip(master: str, key: str, number: int, copy: int = 0) -> str:
    """Changes a byte in the middle of one copy of a slice; the node's name."""
    part = facts_of(master, key).slices[number]
    segment, offset = part.copies[copy]
    with open(segment.shm_path, "r+b") as pool:
        pool.seek(segment.shm_data_offset + offset + part.length // 2)
        (byte,) = pool.read(1)
        pool.seek(-1, os.SEEK_CUR)
        pool.write(bytes([byte ^ 1]))
    return segment.node_id


def verify(master: str, *argv: str) -> tuple[int, list[dict[str, Any]]]:
    done = larder("--master", master, "--format", "json", "verify", *argv)
    assert done.stderr == b""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_bad_copy_is_named_made_again_and_then_all_is_well(store_cluster: Cluster, key: str) -> None:
    at, data = store_cluster.master, os.urandom(2_500_000)
    with connect(at) as store:
        store.put(key, data, copies=2)
        store.put(key + "-other", b"small", copies=2)
        assert verify(at, key)[1][-1]["ok"]
        node = flip(at, key, 1)
        status, (bad, summary) = verify(at, key)
        assert status == 3
        assert (bad["kind"], bad["key"], bad["slice"], bad["node"]) == ("corrupt", key, 1, node)
        wanted = {"ok": False, "objects": 2, "copies": 7, "corrupt": 1, "repaired_objects": 1, "lost_objects": 0}
        assert {name: summary[name] for name in wanted} == wanted
        status, (summary,) = verify(at, key)
        assert (status, summary["ok"], summary["copies"]) == (0, True, 8)
        assert summary["bytes"] == 2 * (2_500_000 + 5)
        assert store.get(key) == data


def test_it_says_so_where_the_bad_copy_was_the_only_one(store_cluster: Cluster, key: str) -> None:
    at = store_cluster.master
    with connect(at) as store:
        store.put(key, b"of one copy")
        node = flip(at, key, 0)
        done = larder("--master", at, "verify", key)
        said = done.stdout.decode().splitlines()
        lost = "there was no other: the object is lost"
        assert said[0] == f"{key}: the copy of slice 0 on {node} has other bytes than were put; {lost}"
        assert said[2] == "1 bad copy dropped: 0 objects repaired, 1 lost"
        assert done.returncode == 3
        assert store.get(key) is None


def test_reading_everything_is_no_use_of_it(store_cluster: Cluster, key: str) -> None:
    at = store_cluster.master
    with connect(at) as store:
        store.put(key, b"here")

    def hits() -> list[int]:
        facts = json.loads(larder("--master", at, "--format", "json", "status").stdout)
        return [facts["counts"][name] for name in ("lookup_keys", "lookup_hit_keys", "match_keys")]

    before = hits()
    assert verify(at)[0] == 0
    assert hits() == before


def test_the_rate_is_kept(store_cluster: Cluster, key: str) -> None:
    at = store_cluster.master
    with connect(at) as store:
        store.put_many([f"{key}{i}" for i in range(8)], [os.urandom(500_000) for _ in range(8)])
    status, (summary,) = verify(at, key, "--rate", "2MB")
    assert status == 0
    assert summary["seconds"] > 1.4  # 4 MB, of which the first part is free


def test_copies_on_a_node_that_does_not_answer_are_told_apart(fragile: Cluster, key: str) -> None:
    at = fragile.master
    with connect(at) as store:
        store.put(key, b"twice", copies=2)
    node = fragile.processes["node-2"]
    node.pause()
    try:
        until = time.monotonic() + 20
        while not facts_of(at, key).silent and time.monotonic() < until:
            time.sleep(0.1)
        status, (summary,) = verify(at)
        assert (status, summary["copies"], summary["silent"], summary["corrupt"]) == (3, 1, 1, 0)
    finally:
        node.resume()
    until = time.monotonic() + 30
    while verify(at)[0] != 0 and time.monotonic() < until:
        time.sleep(0.2)
    assert verify(at)[0] == 0


def test_bad_sizes_are_refused(store_cluster: Cluster) -> None:
    for rate in ("fast", "0", "-1", "10 elephants"):
        refused = larder("--master", store_cluster.master, "verify", "--rate", rate)
        assert refused.returncode == 2
        assert b"Invalid value for '--rate'" in refused.stderr
