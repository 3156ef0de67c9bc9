"""What the overview says of a core: numbers, rates, the hour's samples and events; and its JSON over real HTTP."""

import json
from collections import Counter
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from services.common.ops import Ops
from services.master import overview as overview_module
from services.master import page
from services.master.core import messages as m
from services.master.driver import Driver, Told
from services.master.overview import EVENTS_MAX, SAMPLE_S, SAMPLES_MAX, Overview
from tests.unit.master.transcript import KIB, Cluster


class Watched:
    """A core with an overview of it, and a clock of both."""

    def __init__(self, nodes: int = 2) -> None:
        self.cluster = Cluster(nodes=nodes)
        self.calls: Counter[str] = Counter()
        self.now_s = 1000.0
        self.driver = Driver(self.cluster.core, clock_ms=lambda: self.cluster.core.state.now)
        self.overview = Overview(self.driver, self.calls, lambda: self.now_s, lambda: self.now_s + 5000)

    def tick(self, times: int = 1) -> dict[str, Any]:
        for _ in range(times):
            self.now_s += 1
            self.overview.tick()
        return self.overview.snapshot()

    def hear(self) -> None:
        """What the core has said is passed on, as the driver does."""
        for effect in self.cluster.sent:
            if isinstance(effect, m.Note):
                self.driver.on_note(effect)

    def events(self) -> list[str]:
        return [event["text"] for event in self.overview.snapshot()["events"]]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_the_numbers_are_the_cores(watched: Watched) -> None:
    cluster = watched.cluster
    cluster.put(b"k", KIB, copies=2)
    watched.driver.tell("n0", Told("0.1.0", "box", "10.0.0.1"))
    said = watched.tick()
    json.dumps(said)
    assert (said["objects"], said["object_bytes"], said["writes"]) == (1, KIB, 0)
    first, second = said["nodes"]
    assert (first["id"], first["host"], first["address"], first["version"]) == ("n0", "box", "10.0.0.1", "0.1.0")
    assert second["address"] == ""
    for node in said["nodes"]:
        assert node["state"] == "attached"
        assert (node["copies"], node["live"]) == (1, cluster.core.state.segments[1].live_bytes)
        assert node["live"] + node["reserved"] + node["quarantined"] + node["free"] == node["capacity"]
    assert said["bytes"]["capacity"] == first["capacity"] + second["capacity"]
    assert said["bytes"]["live"] == first["live"] + second["live"]


def test_requests_a_second_are_those_of_the_last_ten_seconds(watched: Watched) -> None:
    for _ in range(30):
        watched.calls["Lookup"] += 20
        watched.tick()
    assert watched.tick(0)["requests_per_s"] == {"Lookup": 20}
    assert watched.tick(5)["requests_per_s"] == {"Lookup": 10}
    assert watched.tick(10)["requests_per_s"] == {}


def test_the_hour_has_a_sample_each_quarter_minute_and_what_came_since(watched: Watched) -> None:
    watched.cluster.put(b"k", KIB)
    assert watched.tick()["asked"]["hour"]["lookup"] == [0, 0]
    watched.cluster.lookup(b"k")
    watched.cluster.lookup(b"none")
    assert watched.tick()["asked"]["hour"]["lookup"] == [2, 1]
    asked = watched.tick(int(SAMPLE_S))["asked"]
    assert asked["steps"]["lookup"] == [(2, 1), (0, 0)]
    watched.cluster.lookup(b"k")
    assert watched.tick(int(SAMPLE_S) * (SAMPLES_MAX - 1))["asked"]["hour"]["lookup"] == [3, 2]
    asked = watched.tick(2 * int(SAMPLE_S))["asked"]
    assert asked["hour"]["lookup"] == [0, 0], "an hour ago is long ago"
    assert len(asked["steps"]["lookup"]) == SAMPLES_MAX + 1


def test_late_ticks_do_not_stretch_the_hour(watched: Watched) -> None:
    watched.cluster.put(b"k", KIB)
    watched.cluster.lookup(b"k")
    watched.tick()
    watched.now_s += 1799  # stopped, or its machine was
    asked = watched.tick()["asked"]
    assert len(asked["steps"]["lookup"]) == 121
    assert asked["hour"]["lookup"] == [1, 1]
    for _ in range(300):
        watched.now_s += 2.1
        watched.tick(1)
    asked = watched.tick(0)["asked"]
    assert len(asked["steps"]["lookup"]) == 1 + (1801 + 300 * 3.1) // SAMPLE_S
    assert 0 <= asked["since_step_s"] < SAMPLE_S
    watched.now_s += 100_000
    assert watched.tick()["asked"]["hour"]["lookup"] == [0, 0]


def test_a_node_that_comes_breaks_off_and_is_lost_is_told_each_time_once(watched: Watched) -> None:
    watched.tick()
    assert sorted(watched.events()) == ["node n0 is attached", "node n1 is attached"]
    cluster = watched.cluster
    cluster.step(m.Broken(1))
    watched.tick(3)
    assert watched.events()[0] == "node n0 broke its connection: its copies are not offered"
    assert len(watched.events()) == 3
    cluster.sent.clear()
    cluster.pass_time(1200)
    watched.hear()
    said = watched.tick()
    assert watched.events()[0].startswith("node n0 is lost, away for 1 s")
    assert said["events"][0]["grave"]
    assert [node["id"] for node in said["nodes"]] == ["n1"]


def test_what_the_core_says_of_silence_is_not_said_twice(watched: Watched) -> None:
    watched.tick()
    watched.cluster.sent.clear()
    watched.cluster.pass_time(300, silent=(1,))
    watched.hear()
    watched.tick(3)
    assert watched.events()[0] == "node n1 does not answer: its copies are not offered"
    assert len(watched.events()) == 3


def test_what_is_counted_is_an_event_a_minute_and_not_one_a_time(watched: Watched) -> None:
    watched.tick()
    for key in (b"a", b"b", b"c", b"d"):
        watched.cluster.start(key, 16 * KIB)
        watched.tick()
    assert watched.events()[0] == "2 objects were not put for lack of room"
    assert len(watched.events()) == 3
    watched.tick(60)
    watched.cluster.start(b"e", 16 * KIB)
    watched.tick()
    assert watched.events()[:2] == [
        "1 objects were not put for lack of room",
        "2 objects were not put for lack of room",
    ]


def test_events_are_bounded_in_number_and_length(watched: Watched) -> None:
    for number in range(EVENTS_MAX + 50):
        watched.driver.on_note(m.Note(f"{number} " + "x" * 10_000))
    events = watched.tick()["events"]
    assert len(events) == EVENTS_MAX
    assert all(len(event["text"]) <= 500 for event in events)


def test_an_answer_walks_no_objects(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unwalked(dict[bytes, Any]):
        def __iter__(self) -> Any:
            raise AssertionError("walked")

        items = values = keys = __iter__

    watched.cluster.put(b"k", KIB)
    monkeypatch.setattr(watched.cluster.core.state, "objects", Unwalked(watched.cluster.core.state.objects.items()))
    assert watched.tick()["objects"] == 1


async def test_the_page_is_sent_with_all_it_needs_and_many_watchers_cost_one_answer_a_second(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    answer = watched.overview.snapshot

    def counted() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return answer()

    monkeypatch.setattr(watched.overview, "snapshot", counted)
    now = 100.0
    monkeypatch.setattr(page.time, "monotonic", lambda: now)
    ops = Ops("127.0.0.1", 0, CollectorRegistry(), lambda: True, pages=page.routes(watched.overview))
    port = await ops.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
                reply = await http.get(path)
                assert (reply.status, reply.content_type) == (200, kind)
                policy = reply.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
                assert "unsafe" not in policy
            for _ in range(50):
                reply = await http.get("/api/overview")
                assert reply.headers["Cache-Control"] == "no-store"
                assert (await reply.json())["version"] == overview_module.VERSION
            assert asked == 1
            now += page.CACHE_S
            await http.get("/api/overview")
            assert asked == 2
            assert (await http.post("/api/overview")).status == 405
    finally:
        await ops.close()
