"""The master's page in a real browser: its numbers are the status's, whatever nodes say stays text, and it tells of
what goes wrong, itself included."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import larder
import pytest
from larder.v1 import master_pb2 as pb
from larder.v1 import master_pb2_grpc
from prometheus_client import CollectorRegistry

from demo.cluster import Cluster, free_port
from services.common.ops import Ops
from services.master import page
from services.master.driver import Driver, Told
from services.master.overview import Overview
from tests.e2e.browser import Tab, browser
from tests.unit.master import transcript

NODES = (
    "Object.fromEntries([...document.querySelectorAll('.node')].map((node) => [node.dataset.id, {...node.dataset}]))"
)
FITS = "document.documentElement.scrollWidth <= window.innerWidth"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


def value(name: str) -> str:
    return f"document.getElementById({name!r}).dataset.value"


def text(name: str) -> str:
    return f"document.getElementById({name!r}).textContent"


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Tab]:
    async with browser(tmp_path) as tab:
        await tab.look()
        yield tab


async def status(master: str) -> pb.StatusReply:
    async with grpc.aio.insecure_channel(master) as channel:
        return await master_pb2_grpc.MasterStub(channel).Status(pb.StatusRequest())


async def check_numbers(tab: Tab, master: str) -> None:
    """What the page shows is what the status says, byte for byte."""
    said = await status(master)
    await tab.wait_for(f"{value('objects')} === '{said.objects}'")
    wanted = {
        node.node_id: {
            "id": node.node_id,
            "live": str(node.segments[0].live_bytes),
            "reserved": str(node.segments[0].reserved_bytes),
            "quarantined": str(node.segments[0].quarantined_bytes),
        }
        for node in said.nodes
    }
    seen = await tab.evaluate(NODES)
    assert seen == wanted
    used = sum(segment.segment.capacity_bytes - segment.free_bytes for node in said.nodes for segment in node.segments)
    assert abs(int(await tab.evaluate(value("used"))) - used) < 4096 * len(said.nodes), (
        "a pool is a whole number of pages"
    )


async def check_looks(tab: Tab) -> None:
    """By day, by night and on a phone."""
    ground = "getComputedStyle(document.body).backgroundColor"
    assert await tab.evaluate(ground) == "rgb(245, 246, 248)"
    await tab.look(dark=True)
    assert await tab.evaluate(ground) == "rgb(16, 21, 28)"
    await tab.look(width=360, height=740)
    assert await tab.evaluate(FITS)
    await tab.look()


@pytest.mark.timeout(180)
async def test_the_page_follows_a_cluster_from_its_first_node_to_a_masters_end_and_return(
    tab: Tab, tmp_path: Path
) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        ports = (free_port(), free_port())
        cluster.start_master("--metrics-port", str(ports[1]), port=ports[0])
        base = f"http://127.0.0.1:{ports[1]}/"
        await tab.open(base)
        await tab.wait_for(f"{text('verdict')} === 'No storage node is attached'")

        for number in (1, 2, 3):
            cluster.start_node(f"node-{number}", "--zone", f"rack-{number}", dram="16MB")
        cluster.wait_ready()
        with larder.connect(cluster.master) as store:
            for number in range(6):
                store.put(f"key-{number}", bytes(1 << 20), copies=2)
            for number in range(8):
                store.get(f"key-{number}")
        await tab.wait_for(f"{text('verdict')} === 'All well'")
        await tab.wait_for(f"{text('hit-rate')} === '75.0 %'")
        await tab.wait_for(f"{value('requests')} > 0")
        await check_numbers(tab, cluster.master)
        assert "node node-2 is attached" in await tab.evaluate(text("events"))
        await check_looks(tab)

        os.kill(cluster.processes["node-2"].pid, signal.SIGKILL)
        await tab.wait_for(f"{text('verdict')} === 'No answer from 1 of 3 nodes'")
        assert await tab.evaluate("document.querySelector('.node.away').dataset.id") == "node-2"
        assert "node node-2 broke its connection" in await tab.wait_for(text("events"))
        assert tab.complaints == []

        cluster.processes["master"].stop()
        await tab.wait_for(f"{text('verdict')} === 'No answer' && document.body.classList.contains('stale')")
        assert "has not answered since" in await tab.evaluate(text("gone"))
        cluster.start_master("--metrics-port", str(ports[1]), port=ports[0])
        await tab.wait_for("!document.body.classList.contains('stale') && document.getElementById('gone').hidden")
        await tab.wait_for("document.querySelectorAll('.node').length === 2")
        assert await tab.listeners("visibilitychange") == 1, "a page that is shown for weeks gathers nothing"
        assert all("ERR_CONNECTION_REFUSED" in complaint for complaint in tab.complaints)
        assert all(url.startswith(base) for url in tab.requests), tab.requests


async def served(nodes: int, told: dict[str, Told], **renamed: str) -> tuple[Ops, str]:
    """The page of a core with so many nodes."""
    core = transcript.Cluster(nodes=nodes).core
    for old, new in renamed.items():
        node = core.state.nodes.pop(old)
        node.node_id = core.state.nodes.setdefault(new, node).node_id = new
        node.zone = new
    driver = Driver(core, clock_ms=lambda: core.state.now)
    driver.told = told
    overview = Overview(driver, {})
    overview.tick()
    ops = Ops("127.0.0.1", 0, CollectorRegistry(), lambda: True, pages=page.routes(overview))
    return ops, f"http://127.0.0.1:{await ops.start()}/"


async def test_two_hundred_nodes_can_be_looked_through(tab: Tab) -> None:
    ops, base = await served(200, {})
    try:
        await tab.open(base)
        await tab.wait_for("document.querySelectorAll('.node').length === 200")
        filtering = "const wanted = document.getElementById('wanted'); wanted.value = 'N19'; "
        await tab.evaluate(filtering + "wanted.dispatchEvent(new Event('input'))")
        names = await tab.evaluate("[...document.querySelectorAll('.node strong')].map((name) => name.textContent)")
        assert names == ["n19", *(f"n{number}" for number in range(190, 200))]
        assert await tab.evaluate(text("count")) == "(11 of 200)"
        assert tab.complaints == []
    finally:
        await ops.close()


async def test_whatever_nodes_call_themselves_is_text(tab: Tab) -> None:
    told: dict[str, Any] = {HOSTILE: Told(HOSTILE, HOSTILE, HOSTILE)}
    ops, base = await served(2, told, n1=HOSTILE)
    try:
        await tab.open(base)
        await tab.wait_for("document.querySelectorAll('.node').length === 2")
        assert HOSTILE in await tab.evaluate("document.getElementById('nodes').textContent")
        assert HOSTILE in await tab.evaluate(text("events"))
        assert await tab.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert await tab.evaluate("document.title") == "Larder"
        assert all(url.startswith(base) and not url.endswith("/x") for url in tab.requests), tab.requests
        assert tab.complaints == []
        await tab.look(width=360, height=740)
        assert await tab.evaluate(FITS)
    finally:
        await ops.close()
