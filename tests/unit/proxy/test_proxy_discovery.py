"""--discover with names: a real name server's records become the fleet; silence and empty answers change nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import dns.rcode
import pytest

from services.proxy import discovery, sources
from services.proxy.core.engine import Role
from tests.free_ports import free_ports
from tests.unit.proxy.conftest import Cluster, StartCluster
from tests.unit.proxy.fake_engine import Engine
from tests.unit.proxy.name_server import NameServer

NAME = "decode.test"
KEY = {"X-API-Key": "sesame"}


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NameServer]:
    monkeypatch.setattr(discovery, "DNS_EVERY_S", 0.05)
    monkeypatch.setattr(discovery, "FILE_EVERY_S", 0.05)
    with NameServer().serving() as server:
        monkeypatch.setattr(sources, "make_resolver", server.make_resolver)
        yield server


@pytest.fixture
async def engines() -> AsyncIterator[list[Engine]]:
    """Three that listen on the same port, as the pods of a service do."""
    with free_ports(1) as ports:
        port = int(ports.partition("-")[0])
    async with (
        Engine("d1").serving("127.0.0.1", port) as first,
        Engine("d2").serving("127.0.0.2", port) as second,
        Engine("d3").serving("127.0.0.3", port) as third,
    ):
        yield [first, second, third]


def source(engines: list[Engine]) -> str:
    return f"decode=dns://{NAME}:{engines[0].address.rpartition(':')[2]}"


def serve(names: NameServer, *hosts: str, name: str = NAME) -> None:
    names.records[name, "A"] = list(hosts)


def addresses(cluster: Cluster, role: Role = Role.DECODE) -> list[str]:
    return [engine.address for engine in cluster.proxy.fleet.engines(role)]


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def asked_again(names: NameServer, times: int = 4) -> None:
    before = names.asked
    await until(lambda: names.asked >= before + times)


# -- names


async def test_a_proxy_without_engines_finds_them_and_follows_their_records(
    names: NameServer, engines: list[Engine], start_cluster: StartCluster
) -> None:
    first, second, third = engines
    cluster = await start_cluster(0, 0, discover=[source(engines)])
    assert (await cluster.complete())[0] == 503
    assert cluster.metric("discovery_up") == 0
    serve(names, "127.0.0.1", "127.0.0.2")
    await until(lambda: addresses(cluster) == [first.address, second.address])
    await until(lambda: cluster.metric("engine_up") == 2)
    assert {(await cluster.complete())[1]["by"] for _ in range(4)} == {"d1", "d2"}
    serve(names, "127.0.0.2", "127.0.0.3")
    await until(lambda: addresses(cluster) == [second.address, third.address])
    assert cluster.metric("discovery_changes_total", role="decode", change="joined") == 3
    assert cluster.metric("discovery_changes_total", role="decode", change="left") == 1
    assert cluster.metric("discovery_up", source=source(engines)) == 1


async def test_an_engine_found_before_it_answers_gets_no_requests(
    names: NameServer, engines: list[Engine], start_cluster: StartCluster
) -> None:
    engines[1].healthy = False
    serve(names, "127.0.0.1", "127.0.0.2", "127.0.0.9")  # nobody listens at the last
    cluster = await start_cluster(0, 0, discover=[source(engines)])
    assert len(addresses(cluster)) == 3
    assert [(await cluster.complete())[1]["by"] for _ in range(6)] == ["d1"] * 6
    assert cluster.metric("retries_total") == 0
    engines[1].healthy = True
    await until(lambda: cluster.metric("engine_up") == 2)


@pytest.mark.parametrize("trouble", ["silent", "servfail", "empty", "no such name"])
async def test_neither_silence_nor_an_empty_answer_removes_an_engine(
    names: NameServer,
    engines: list[Engine],
    start_cluster: StartCluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    monkeypatch.setattr(sources, "LOOKUP_S", 0.1)
    serve(names, "127.0.0.1")
    cluster = await start_cluster(0, 0, discover=[source(engines)])
    if trouble == "silent":
        names.is_silent = True
    elif trouble == "servfail":
        names.rcode = dns.rcode.SERVFAIL
    else:
        names.records = {(NAME, "TXT"): ["x"]} if trouble == "empty" else {("another.test", "A"): ["127.0.0.2"]}
    reason = "unanswered" if trouble in ("silent", "servfail") else "empty"
    await until(lambda: cluster.metric("discovery_failures_total", reason=reason) >= 4)
    assert cluster.metric("discovery_up") == 0
    assert addresses(cluster) == [engines[0].address]
    assert (await cluster.complete())[0] == 200
    said = [record for record in caplog.records if "the known ones stay" in record.getMessage()]
    assert len(said) == 1
    names.is_silent, names.rcode = False, dns.rcode.NOERROR
    serve(names, "127.0.0.1")
    await until(lambda: cluster.metric("discovery_up") == 1)
    assert cluster.metric("discovery_changes_total") == 1


async def test_a_leaving_engine_gets_nothing_new_and_finishes_its_requests(
    names: NameServer, engines: list[Engine], start_cluster: StartCluster
) -> None:
    first, second, _ = engines
    serve(names, "127.0.0.1")
    cluster = await start_cluster(0, 0, discover=[source(engines)])
    first.next_event = asyncio.Semaphore(1)
    streamed = {"model": "tiny", "prompt": "hello", "stream": True}
    async with cluster.client.post("/v1/completions", json=streamed) as response:
        await response.content.readany()
        serve(names, "127.0.0.2")
        await until(lambda: cluster.metric("engine_draining", engine=first.address) == 1)
        await until(lambda: cluster.metric("engine_up", engine=second.address) == 1)
        assert [(await cluster.complete())[1]["by"] for _ in range(4)] == ["d2"] * 4
        assert addresses(cluster) == [first.address, second.address]
        for _ in range(10):
            first.next_event.release()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    await until(lambda: addresses(cluster) == [second.address])


async def test_an_engine_that_is_occasionally_missing_stays(
    names: NameServer, engines: list[Engine], start_cluster: StartCluster
) -> None:
    serve(names, "127.0.0.1", "127.0.0.2")
    cluster = await start_cluster(0, 0, discover=[source(engines)])
    known = cluster.proxy.fleet.engines(Role.DECODE)
    before = names.answer

    def flapping(query: bytes) -> Any:
        serve(names, *(["127.0.0.1", "127.0.0.2"] if names.asked % 2 else ["127.0.0.1"]))
        return before(query)

    names.answer = flapping  # type: ignore[method-assign]
    await asked_again(names, 10)
    assert cluster.proxy.fleet.engines(Role.DECODE) == known
    assert cluster.metric("discovery_changes_total") == 2


async def test_a_long_answer_comes_by_tcp(
    names: NameServer, engines: list[Engine], start_cluster: StartCluster
) -> None:
    serve(names, *(f"127.0.1.{n}" for n in range(200)), "127.0.0.1")
    cluster = await start_cluster(0, 0, discover=[source(engines)])
    assert len(addresses(cluster)) == 201
    assert (await cluster.complete())[0] == 200


async def test_of_two_families_ipv4_counts_and_ipv6_alone_too(
    names: NameServer, engines: list[Engine], start_cluster: StartCluster
) -> None:
    port = engines[0].address.rpartition(":")[2]
    names.records = {(NAME, "A"): ["127.0.0.1"], (NAME, "AAAA"): ["::1"], ("six.test", "AAAA"): ["fd00::7", "::"]}
    cluster = await start_cluster(0, 0, discover=[source(engines), "prefill=dns://six.test:8100"])
    assert addresses(cluster) == [f"127.0.0.1:{port}"]
    assert addresses(cluster, Role.PREFILL) == ["[fd00::7]:8100"]  # nobody can be reached at ::


async def test_srv_records_tell_the_ports(
    names: NameServer, engines: list[Engine], start_cluster: StartCluster
) -> None:
    port = engines[0].address.rpartition(":")[2]
    names.records = {
        ("_http._tcp.decode.test", "SRV"): [f"0 1 {port} a.decode.test.", "0 1 9 b.decode.test."],
        ("a.decode.test", "A"): ["127.0.0.1"],
        ("b.decode.test", "A"): ["127.0.0.2"],
    }
    cluster = await start_cluster(0, 0, discover=["decode=dns://_http._tcp.decode.test"])
    assert addresses(cluster) == [f"127.0.0.1:{port}", "127.0.0.2:9"]
    assert (await cluster.complete())[1]["by"] == "d1"


async def test_an_srv_record_whose_host_is_gone_hides_no_other(
    names: NameServer, engines: list[Engine], start_cluster: StartCluster
) -> None:
    port = engines[0].address.rpartition(":")[2]
    names.records = {
        ("_http._tcp.decode.test", "SRV"): ["0 1 9 gone.test.", f"0 1 {port} a.decode.test."],
        ("a.decode.test", "A"): ["127.0.0.1"],
    }
    cluster = await start_cluster(0, 0, discover=["decode=dns://_http._tcp.decode.test"])
    assert addresses(cluster) == [f"127.0.0.1:{port}"]
    del names.records["a.decode.test", "A"]  # all are gone, which no source is believed
    await until(lambda: cluster.metric("discovery_failures_total", reason="empty") >= 3)
    assert addresses(cluster) == [f"127.0.0.1:{port}"]
