"""The arithmetic of the proxy's benchmark, and how its load reads answers."""

import json

import pytest

from bench.proxy_engine import EVENTS, MARK, PACED
from bench.proxy_load import Load, Shape, is_whole
from bench.proxy_report import Series, added, ratio, targets
from bench.proxy_subjects import DEMO, DIRECT, LARDER_PULL, LARDER_STORE, VLLM_ROUTER

PLAIN = Shape(200, streamed=False)


def test_what_a_proxy_adds_is_taken_round_by_round() -> None:
    assert added([3.0, 12.0], [1.0, 10.0]) == [2.0, 2.0]
    assert ratio([1.0, 8.0, 9.0], [2.0, 16.0, 8.0]) == 0.5


def test_quantiles_and_throughput_of_a_load() -> None:
    load = Load(2.0, [float(number) for number in range(100)])
    assert (load.quantile(0.5), load.quantile(0.99), load.quantile(1.0), load.per_s) == (50.0, 99.0, 99.0, 50.0)


def test_cpu_is_counted_by_the_request() -> None:
    series = Series()
    series.add(Load(2.0, [0.1] * 4), cpu_s=0.2, load_cpu_s=1.0)
    assert (series.cpu_s, series.load_busy) == ([0.05], [0.5])


def series(p50_s: float, per_s: float) -> Series:
    return Series([p50_s], [p50_s], [per_s], [1 / per_s], [0.5])


def test_targets_are_judged_over_the_floor_and_beside_the_demo() -> None:
    measured = {}
    for clients in (1, 16):
        measured |= {
            (DIRECT, PLAIN, clients): series(1.0, 100.0),
            (LARDER_PULL, PLAIN, clients): series(3.0, 20.0),
            (LARDER_STORE, PLAIN, clients): series(2.5, 30.0),
            (VLLM_ROUTER, PLAIN, clients): series(2.0, 60.0),
            (DEMO, PLAIN, clients): series(9.0, 10.0),
        }
    judged = list(targets(measured))
    assert [(target.measured, target.met) for target in judged] == [(2.0, False), (3.0, True), (3.0, True)]


def test_nothing_is_judged_beside_what_was_not_measured() -> None:
    measured = {(name, PLAIN, clients): series(1.0, 1.0) for name in (DIRECT, LARDER_STORE) for clients in (1, 16)}
    assert list(targets(measured)) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nserver: x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    ],
)
def test_an_answer_is_whole_at_its_last_byte_and_not_before(answer: bytes) -> None:
    assert [is_whole(answer[:end]) for end in range(len(answer) + 1)] == [False] * len(answer) + [True]


def test_a_payload_is_what_its_shape_says() -> None:
    shape = Shape(8192, streamed=True, paced=True)
    head, _, body = shape.payload().partition(b"\r\n\r\n")
    asked = json.loads(body)
    assert f"Content-Length: {len(body)}".encode() in head
    assert len(asked["messages"][0]["content"]) == 8192
    assert (asked["stream"], asked["user"], asked["max_tokens"]) == (True, PACED, EVENTS)
    leg = json.loads(shape.payload(prefill=True).partition(b"\r\n\r\n")[2])
    assert leg == asked | {"stream": False, "max_tokens": 1}
    assert MARK not in body
