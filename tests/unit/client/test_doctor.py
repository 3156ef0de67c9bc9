"""Checks of `larder doctor` whose faults are not planted (contract/test_doctor has those): by what they look at."""

import asyncio
import os
import resource
from pathlib import Path

import pytest
from larder import doctor
from larder.doctor import Subject, examine, pool_folder, reaching, transfer_engine
from larder.doctor.cluster import check_cluster
from larder.doctor.engines import check_logs, check_proxy
from larder.doctor.finding import Finding, Verdict
from larder.doctor.machine import MARGIN_BYTES, check_cgroup, check_clock, check_memlock
from larder.doctor.network import Reached, check_masters
from larder.doctor.pool_folder import PAGES_MATTER_BYTES, Mount, check_pool_folder
from larder.doctor.reaching import check_nodes
from larder.doctor.versions import check_versions, is_far
from larder.engine_ports import Ports
from larder.options import resolve
from larder.v1 import master_pb2 as pb
from larder.v1 import types_pb2
from larder.vllm.introduction import introduce

BAD, WARN, OK = Verdict.BAD, Verdict.WARN, Verdict.OK
START = "larder node"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def the_one(found: list[Finding], verdict: Verdict) -> Finding:
    (one,) = [each for each in found if each.verdict is verdict]
    return one


def cluster(status: pb.StatusReply, now_s: float = 1_000.0) -> list[Finding]:
    return check_cluster(Reached([], status, now_s, now_s + 0.1, "127.0.0.1:50001"), START)


# ---- engines that should share -------------------------------------------------------------------


def test_of_engines_that_do_not_share_the_fact_that_differs_is_named(tmp_path: Path) -> None:
    facts = {"dtype": "bfloat16", "hashes": "sha256", "media": {"fps": 1}}
    said = {"a": facts, "b": facts, "c": facts | {"hashes": "xxhash, random seed", "media": {"fps": 2}}}
    logs = {
        name: write(
            tmp_path / name, f"INFO starts\n(EngineCore pid=1) INFO {introduce('n' + each['hashes'][0], each)}\n"
        )
        for name, each in said.items()
    }
    assert the_one(check_logs([logs["a"], logs["b"]]), OK).said == "share KV as ns"
    hashes, media = check_logs([logs["a"], logs["c"]])
    assert (hashes.verdict, media.verdict) == (BAD, BAD)
    assert hashes.said == "they share nothing: hashes is sha256 and xxhash, random seed"
    assert "PYTHONHASHSEED" in hashes.advice
    assert media.said == "they share nothing: media.fps is 1 and 2"


def test_an_engine_that_shares_with_nobody_and_one_without_the_connector_are_told(tmp_path: Path) -> None:
    alone = "Larder: the weights of m are not known by content, so this engine shares with itself alone; an option"
    assert "not known by content" in the_one(check_logs([write(tmp_path / "a", f"WARN {alone}\n")]), BAD).said
    assert "no word of" in the_one(check_logs([write(tmp_path / "b", "INFO\n")]), BAD).said


async def test_a_proxy_that_is_not_there_is_refused_by_name() -> None:
    found = the_one(await check_proxy("127.0.0.1:1"), BAD)
    assert "refused" in found.said
    assert found.remedy.startswith("larder proxy --port 1 ")


@pytest.mark.parametrize(
    "answer", [b"\x00\x00\x18\x04\x00", b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", b""]
)
async def test_what_is_no_proxy_is_told(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = the_one(await check_proxy(f"127.0.0.1:{port}"), BAD)
    assert found.said == "answers, and is no Larder proxy"


async def test_a_check_that_breaks_leaves_the_others_their_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def broken() -> Finding:
        raise KeyError("what nobody thought of")

    monkeypatch.setattr("larder.doctor.check_transfer_engine", broken)
    subject = Subject("127.0.0.1:1", lambda: resolve("127.0.0.1:1"), tmp_path)
    found = await examine(subject)
    assert [each.said for each in found if each.part == "transfer engine"] == [
        "failed: KeyError: 'what nobody thought of'"
    ]
    assert any("no master listens" in each.said for each in found)


async def test_checks_that_hang_are_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def hangs(*_: object, **__: object) -> list[Finding]:
        await asyncio.Event().wait()
        return []

    assert 2 * doctor.CHECK_S <= 20
    monkeypatch.setattr(doctor, "CHECK_S", 0.1)
    for name in ("check_transfer_engine", "check_proxy", "check_nodes"):
        monkeypatch.setattr(doctor, name, hangs)
    found = await examine(Subject("127.0.0.1:1", lambda: resolve("127.0.0.1:1"), tmp_path, proxies=["127.0.0.1:1"]))
    late = [each.part for each in found if each.said == "took more than 0.1 s"]
    assert late == ["transfer engine", "bytes", "proxy 127.0.0.1:1"]


# ---- the cluster ---------------------------------------------------------------------------------


def test_a_master_that_rests_says_how_long() -> None:
    status = pb.StatusReply(nodes=[pb.NodeStatus(node_id="n", state="attached")], rest_left_ms=37_500, rested_ms=12_000)
    assert the_one(cluster(status), WARN).remedy == "sleep 38"


@pytest.mark.parametrize(("theirs_s", "is_wrong"), [(1_000, False), (1_001.9, False), (1_003, True), (997, True)])
def test_clocks_that_differ_are_told(theirs_s: float, is_wrong: bool) -> None:
    status = pb.StatusReply(nodes=[pb.NodeStatus(node_id="n", state="attached")], wall_ms=int(theirs_s * 1000))
    assert [each.looked_at for each in cluster(status) if each.verdict is WARN] == ["wall clock"] * is_wrong


def test_a_node_of_another_version_is_told_and_one_that_is_far_is_bad() -> None:
    nodes = [pb.NodeStatus(node_id=name, version=its) for name, its in (("old", "0.0.9"), ("near", "0.1.7"))]
    found = {each.looked_at: each for each in check_versions(pb.StatusReply(version="0.1.0", nodes=nodes))}
    assert (found["node old"].verdict, found["node near"].verdict) == (BAD, WARN)
    assert found["node old"].remedy == "pip install larder-server==0.1.0"
    assert [is_far("0.1.0", other) for other in ("0.1.9", "0.2.0", "1.1.0")] == [False, True, True]


async def test_a_name_that_is_no_host_is_told() -> None:
    (found,) = (await check_masters(["no-such-host.invalid:50001"])).findings
    assert (found.verdict, found.said) == (BAD, "no-such-host.invalid is not the name of a host here")


@pytest.mark.parametrize(
    ("port", "ours", "opened", "rest"),
    [
        (15_500, None, "15000:17000", ""),
        (18_004, Ports(18_000, 18_009), "18000:18009", ""),
        (18_004, None, "18004", "; for all of the node's --engine-ports, of which 18004 is one"),
        (15_500, Ports(18_000, 18_009), "15000:17000", ""),
    ],
)
async def test_a_firewall_is_opened_for_the_whole_range(
    monkeypatch: pytest.MonkeyPatch, port: int, ours: Ports | None, opened: str, rest: str
) -> None:
    async def dropped(endpoint: str) -> str:
        return "the connection timed out after 1 s: a firewall drops it, or the host is down"

    monkeypatch.setattr(reaching, "why_unreached", dropped)
    segment = types_pb2.Segment(node_id="n", host_id="far", shm_path="/none", engine_endpoint=f"198.18.0.2:{port}")
    node = pb.NodeStatus(node_id="n", state="attached", segments=[pb.SegmentStatus(segment=segment)])
    (found,) = await check_nodes([node], ours, has_engine=False)
    assert (found.verdict, found.remedy) == (BAD, f"iptables -I INPUT -p tcp --dport {opened} -j ACCEPT")
    assert found.advice == f"on the node's host, as root, or in its firewall{rest}"


# ---- this host -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/a/b", "sys/fs/cgroup/a/memory.max"),
        ("4:memory:/a/b", "sys/fs/cgroup/memory/a/memory.limit_in_bytes"),
    ],
)
def test_a_container_that_is_too_small_for_the_pool_is_told(tmp_path: Path, group: str, file: str) -> None:
    write(tmp_path / "proc/self/cgroup", group + "\n")
    limit = write(tmp_path / file, "1000000000\n")
    found = the_one(check_cgroup(10**9, root=tmp_path), BAD)
    assert found.remedy == f"echo {10**9 + MARGIN_BYTES} > {limit}"
    limit.write_text(f"{10**9 + MARGIN_BYTES}\n")
    assert check_cgroup(10**9, root=tmp_path)[0].verdict is OK


def test_a_slow_clock_source_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "sys/devices/system/clocksource/clocksource0"
    write(folder / "current_clocksource", "hpet\n")
    write(folder / "available_clocksource", "hpet tsc acpi_pm\n")
    assert check_clock(root=tmp_path).remedy.startswith("echo tsc > ")
    write(folder / "current_clocksource", "tsc\n")
    assert check_clock(root=tmp_path).verdict is OK


@pytest.mark.parametrize(
    ("trouble", "remedy"),
    [
        ("ModuleNotFoundError: No module named 'mooncake'", "pip install mooncake-transfer-engine-non-cuda"),
        ("ImportError: libnuma.so.1: cannot open shared object file", "apt-get install --reinstall -y libnuma1"),
        ("ImportError: libcudart.so.12: cannot open shared object file", "pip uninstall -y mooncake-transfer-engine;"),
    ],
)
async def test_an_engine_that_cannot_be_loaded_is_told_what_it_lacks(tmp_path: Path, trouble: str, remedy: str) -> None:
    python = write(tmp_path / "python", f'#!/bin/sh\necho "{trouble}" >&2\nexit 1\n')
    python.chmod(0o755)
    found = await transfer_engine.check_transfer_engine(str(python))
    assert found.verdict is BAD
    assert found.remedy.startswith(remedy)


def test_rdma_without_the_right_to_lock_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65_536, resource.RLIM_INFINITY))
    assert check_memlock(root=tmp_path).verdict is Verdict.SKIPPED
    write(tmp_path / "sys/class/infiniband/mlx5_0/node_type", "1: CA\n")
    found = check_memlock(root=tmp_path)
    assert (found.verdict, found.remedy) == (BAD, "ulimit -l unlimited")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert check_memlock(root=tmp_path).verdict is OK


def test_a_pool_folder_of_another_user_and_one_that_is_a_file_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = the_one(check_pool_folder(tmp_path, None), BAD)
    assert (found.said.partition(" (")[0], found.remedy) == (
        f"uid {os.geteuid()} cannot make files there",
        f"chown {os.geteuid()} {tmp_path}",
    )
    assert the_one(check_pool_folder(write(tmp_path / "file", ""), None), BAD).said == "is no folder"


@pytest.mark.parametrize(("options", "is_told"), [("rw,size=99%", True), ("rw,huge=within_size", False)])
def test_large_pools_in_small_pages_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, is_told: bool
) -> None:
    pool = PAGES_MATTER_BYTES
    mount = Mount(str(tmp_path), "tmpfs", options, 4 * pool, 4 * pool)
    monkeypatch.setattr(pool_folder, "mount_of", lambda folder: mount)
    root = write(tmp_path / "root/proc/meminfo", f"MemAvailable: {4 * pool // 1024} kB\n").parents[1]
    remedies = [each.remedy for each in check_pool_folder(tmp_path, pool, root=root) if each.looked_at == "huge pages"]
    assert remedies == [f"mount -o remount,huge=within_size {tmp_path}"] * is_told
    assert not [each for each in check_pool_folder(tmp_path, pool - 1, root=root) if each.verdict is not OK]
