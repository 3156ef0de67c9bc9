"""--discover with a file, and how what is found combines with what operators do."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from services.proxy import discovery
from services.proxy.core.discovery import ABSENCES, Dns, File, Reason, Tally, Unheard, source_of
from services.proxy.core.engine import Address, Health, Role
from services.proxy.core.fleet import Fleet
from services.proxy.core.membership import AlreadyThere, Membership, NotThere, Wish, without_left, without_stale
from tests.unit.proxy.conftest import Cluster, StartCluster
from tests.unit.proxy.test_proxy_discovery import KEY, addresses, until

A, B, C = Address("10.0.0.1:1"), Address("10.0.0.2:2"), Address("10.0.0.3:3")


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "FILE_EVERY_S", 0.05)


# -- files


async def test_a_file_that_appears_late_and_is_replaced_is_followed(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    path = tmp_path / "engines.yaml"
    cluster = await start_cluster(0, 0, discover=[f"file://{path}"])
    assert cluster.metric("discovery_failures_total", reason="unreadable") == 1
    path.write_text("prefill: []\ndecode:\n  - 127.0.0.1:1\n  - https://engine.test/base\n")
    await until(lambda: addresses(cluster) == ["127.0.0.1:1", "https://engine.test:443/base"])
    (tmp_path / "new").write_text(json.dumps({"prefill": ["127.0.0.1:3"], "decode": ["127.0.0.1:2"]}, indent="\t"))
    (tmp_path / "new").replace(path)
    await until(lambda: addresses(cluster) == ["127.0.0.1:2"])
    assert addresses(cluster, Role.PREFILL) == ["127.0.0.1:3"]
    path.write_text("decode: [127.0.0.1:2]\n")  # no prefill engines: the operator's decision
    await until(lambda: addresses(cluster, Role.PREFILL) == [])


async def test_a_config_map_is_followed_through_its_links(start_cluster: StartCluster, tmp_path: Path) -> None:
    def publish(version: str, text: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "engines.yaml").write_text(text)
        (tmp_path / "..new").symlink_to(version)
        (tmp_path / "..new").replace(tmp_path / "..data")

    publish("..1", "decode: [127.0.0.1:1]")
    (tmp_path / "engines.yaml").symlink_to("..data/engines.yaml")
    cluster = await start_cluster(0, 0, discover=[f"file://{tmp_path}/engines.yaml"])
    assert addresses(cluster) == ["127.0.0.1:1"]
    publish("..2", "decode: [127.0.0.1:2]")
    await until(lambda: addresses(cluster) == ["127.0.0.1:2"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"decode: []\nprefill: [127.0.0.1:2]\n", "empty"),
        (b"decode: [127.0.0.1:1", "invalid"),
        (b'{"decode": ["127.0', "invalid"),
        (b"decode: [127.0.0.1:1, 127.0.0.1:99999]", "invalid"),
        (b"decoed: [127.0.0.1:1]", "invalid"),
        (b"- 127.0.0.1:1", "invalid"),
        (b"decode: \xff", "invalid"),
        (b"decode: !!python/object:os.system [x]", "invalid"),
        (b"#" * (257 << 10), "invalid"),
        (b"decode: [%s]" % b", ".join(b"10.0.%d.%d:1" % divmod(n, 250) for n in range(1025)), "too_many"),
        (None, "unreadable"),
    ],
)
async def test_a_bad_or_half_written_file_changes_nothing_and_is_reported_once(
    start_cluster: StartCluster,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
    reason: str,
) -> None:
    path = tmp_path / "engines.yaml"
    path.write_text("decode: [127.0.0.1:1]")
    cluster = await start_cluster(0, 0, discover=[f"file://{path}"])
    if content is None:
        path.unlink()
        os.mkfifo(path)
    else:
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(path)
    if content is None:
        await until(lambda: cluster.metric("discovery_failures_total") >= 3)
    else:
        await until(lambda: cluster.metric("discovery_failures_total", reason=reason) >= 3)
    assert addresses(cluster) == ["127.0.0.1:1"]
    assert cluster.metric("discovery_up") == 0
    assert len([each for each in caplog.records if "the known ones stay" in each.getMessage()]) == 1


async def test_a_hanging_file_system_delays_neither_the_start_nor_the_end(tmp_path: Path) -> None:
    """With a real process, which must not wait for the thread at its end."""
    hung = (
        "import time\nfrom services.proxy import cli, sources\nsources.LOOKUP_S = sources._HUNG_S = 0.2\n"
        "sources.FileSource._read = lambda self: time.sleep(60)\ncli.main()"
    )
    argv = [sys.executable, "-c", hung, "--port", "0", "--discover", f"file://{tmp_path}/engines.yaml"]
    process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert b"proxy ready" in await process.stdout.readline()
            await asyncio.sleep(1.5)  # it is asked again
            process.terminate()
        async with asyncio.timeout(10):
            _, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0
    assert log.count(b"its file system does not answer; the known ones stay") == 1


# -- with operators


async def tell(cluster: Cluster, what: str, address: str) -> int:
    asked = {"type": "decode", "instance": address}
    async with cluster.client.post(f"/instances/{what}", json=asked, headers=KEY) as response:
        return response.status


@pytest.mark.parametrize("with_state", [False, True])
async def test_an_operators_word_holds_as_long_as_the_engine_is_found(
    start_cluster: StartCluster, tmp_path: Path, with_state: bool
) -> None:
    path = tmp_path / "engines.yaml"
    path.write_text(f"decode: ['{A}', '{B}']")
    settings: dict[str, Any] = {"discover": [f"file://{path}"], "admin_api_key": "sesame"}
    if with_state:
        settings["state_file"] = tmp_path / "state.json"
    cluster = await start_cluster(0, 0, **settings)
    assert await tell(cluster, "remove", A) == 200
    path.write_text(f"decode: ['{A}', '{B}', '{C}']")
    await until(lambda: addresses(cluster) == [B, C])
    if with_state:  # a restart, with the file absent for a moment
        await cluster.stop()
        path.rename(tmp_path / "away")
        cluster = await start_cluster(0, 0, **settings)
        assert addresses(cluster) == []
        (tmp_path / "away").rename(path)
        await until(lambda: addresses(cluster) == [B, C])
    path.write_text(f"decode: ['{B}', '{C}']")
    await until(lambda: cluster.metric("discovery_changes_total", change="left") == 1)
    path.write_text(f"decode: ['{A}', '{B}', '{C}']")  # another engine has its address now
    await until(lambda: sorted(addresses(cluster)) == [A, B, C])


@pytest.mark.parametrize("address", ["engine.test:1", "192.0.2.1:1"])  # which --instance-allow does not restrict
async def test_an_engine_that_was_drained_stays_so_while_its_source_is_silent_after_a_restart(
    start_cluster: StartCluster, tmp_path: Path, address: str
) -> None:
    path = tmp_path / "engines.yaml"
    path.write_text(f"decode: ['{address}']")
    settings = {"discover": [f"file://{path}"], "admin_api_key": "sesame", "state_file": tmp_path / "state.json"}
    cluster = await start_cluster(0, 0, **settings)
    assert await tell(cluster, "drain", address) == 200
    await cluster.stop()
    path.rename(tmp_path / "away")
    cluster = await start_cluster(0, 0, **settings)
    (tmp_path / "away").rename(path)
    await until(lambda: cluster.metric("discovery_up") == 1)
    assert cluster.metric("engine_draining", engine=address) == 1
    await cluster.stop()
    path.write_text(f"decode: ['{A}']")  # it left while nobody was looking
    cluster = await start_cluster(0, 0, **settings)
    assert addresses(cluster) == [A]


# -- decisions


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("decode=dns://larder-decode:8200", Dns(Role.DECODE, "larder-decode", 8200)),
        ("prefill=dns://p.larder.svc.cluster.local.:80", Dns(Role.PREFILL, "p.larder.svc.cluster.local.", 80)),
        ("prefill=dns://_http._tcp.p.larder.svc", Dns(Role.PREFILL, "_http._tcp.p.larder.svc", None)),
        ("file:///etc/larder/a=b.yaml", File("/etc/larder/a=b.yaml")),
    ],
)
def test_how_sources_are_written(text: str, source: Dns | File) -> None:
    assert source_of(text) == source


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("dns://decode:8200", "write prefill=dns://decode:8200 or decode=dns://decode:8200"),
        ("both=dns://decode:8200", "does not say which engines"),
        ("decode=dns://decode", "is not dns://NAME:PORT, nor dns://_SERVICE"),
        ("decode=dns://decode:0", "a port is between 1 and 65535"),
        ("decode=dns://decode:80/base", "speaks plain HTTP"),
        ("decode=decode:8200", "is not prefill=dns://NAME:PORT"),
        ("decode=file:///engines", "is not prefill=dns://NAME:PORT"),
        ("file://engines.yaml", "no absolute path"),
    ],
)
def test_a_bad_source_is_told_how_to_write_one(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("/", "\\/")):
        source_of(text)


def test_a_predecessors_findings_hold_until_every_source_of_the_role_has_answered() -> None:
    sources: dict[str, Dns | File] = {"d": Dns(Role.DECODE, "d", 1), "p": Dns(Role.PREFILL, "p", 1)}
    tally = Tally(sources, {Role.DECODE: (A,), Role.PREFILL: (C,)})
    assert tally.found == {Role.PREFILL: (C,), Role.DECODE: (A,)}
    tally.heard("d", [(Role.DECODE, B)])
    assert tally.found == {Role.PREFILL: (C,), Role.DECODE: (B,)}
    with pytest.raises(Unheard) as unheard:
        tally.heard("p", [])
    assert unheard.value.reason is Reason.EMPTY
    assert not tally.is_complete


def test_an_engine_leaves_after_so_many_answers_in_a_row_without_it() -> None:
    tally = Tally({"d": Dns(Role.DECODE, "d", 1)}, {})
    for _ in range(3):
        tally.heard("d", [(Role.DECODE, A), (Role.DECODE, B)])
        for _ in range(ABSENCES - 1):
            tally.heard("d", [(Role.DECODE, A)])
            assert tally.found[Role.DECODE] == (A, B)
    tally.heard("d", [(Role.DECODE, A)])
    assert tally.found[Role.DECODE] == (A,)


def test_a_found_engine_leaves_only_when_it_is_no_longer_needed() -> None:
    fleet = Fleet()
    members = Membership({Role.DECODE: (C,)}).following({Role.DECODE: (A, B)}, {}).bring(fleet)
    found = fleet.get(Role.DECODE, A)
    assert found is not None
    assert found.health is Health.GONE  # until it is asked
    booking = fleet.book(found, 1, 0.0)
    members = members.following({}, {}).bring(fleet)
    assert [(each.address, each.draining) for each in fleet.engines(Role.DECODE)] == [(C, False), (A, True)]
    with pytest.raises(NotThere, match="no longer found"):
        members.removed(Role.DECODE, A)
    members = members.following({Role.DECODE: (A,)}, {}).bring(fleet)  # back: as it was
    assert fleet.get(Role.DECODE, A) is found
    assert not found.draining
    members = members.following({}, {}).bring(fleet)
    fleet.ended(booking)
    assert not members.bring(fleet).leaving
    assert [each.address for each in fleet.engines(Role.DECODE)] == [C]


def test_a_wish_is_forgotten_with_the_engine_that_was_found() -> None:
    members = Membership({Role.DECODE: (C,)}, found={Role.DECODE: (A, B)})
    with pytest.raises(AlreadyThere):
        members.added(Role.DECODE, A)
    changed = members.drained(Role.DECODE, A).removed(Role.DECODE, B).drained(Role.DECODE, C)
    assert without_left(changed, {Role.DECODE: (B,)}) == {Role.DECODE: {B: Wish.REMOVED, C: Wish.DRAINING}}
    later = Membership(members.given, changed.changes)
    assert without_stale(later) == {Role.DECODE: {A: Wish.DRAINING, C: Wish.DRAINING}}
    assert without_stale(later, removals_only=False) == {Role.DECODE: {C: Wish.DRAINING}}


async def test_leaving_ends_even_if_nothing_else_happens(start_cluster: StartCluster, tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    cluster = await start_cluster(0, 1)
    engine = cluster.decodes[0]
    path.write_text(json.dumps({"decode": [engine.address]}))
    other = await start_cluster(0, 0, discover=[f"file://{path}"])
    engine.next_event = asyncio.Semaphore(0)
    asked = {"model": "tiny", "prompt": "hello", "stream": True}
    call = asyncio.create_task(other.client.post("/v1/completions", json=asked).__aenter__())
    await until(lambda: other.metric("engine_legs") == 1)
    path.write_text(json.dumps({"decode": [str(A)]}))
    await until(lambda: other.metric("engine_draining") == 1)
    for _ in range(10):
        engine.next_event.release()
    async with asyncio.timeout(5):
        response = await call
        assert (await response.read()).endswith(b"[DONE]\n\n")
    await until(lambda: addresses(other) == [A])
