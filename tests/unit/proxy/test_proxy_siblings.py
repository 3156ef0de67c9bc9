"""What workers tell each other: which are passed over, and which count as silent."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from services.proxy.siblings import Siblings, WorkerSlot


def worker(directory: Path, index: int) -> Siblings:
    return Siblings(WorkerSlot(directory, index, 2), CollectorRegistry())


@contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_workers_that_are_there_are_told_and_others_count_as_silent(tmp_path: Path) -> None:
    one, other = worker(tmp_path, 0), worker(tmp_path, 1)
    assert await one.reload() == 0  # nobody is there
    told = []
    await other.serve(reload=lambda: told.append(True), instances=lambda: [{"legs": 1}], home={"resp_?&1": "e:1"}.get)
    assert (await one.reload(), told) == (0, [True])
    assert (await one.instances()).answers == {1: [{"legs": 1}]}
    assert [await one.home(id) for id in ("resp_?&1", "resp_2")] == ["e:1", None]
    with no_descriptors():
        assert await one.reload() == 1
    await other.close()
    assert await one.reload() == 0


async def test_metrics_tell_how_many_workers_they_cover(tmp_path: Path) -> None:
    one, other = worker(tmp_path, 0), worker(tmp_path, 1)
    assert b"\nlarder_proxy_workers 1.0\n" in await one.metrics()
    await other.serve(reload=lambda: None, instances=list, home=lambda _: None)
    assert b"\nlarder_proxy_workers 2.0\n" in await one.metrics()
    await other.close()
    assert b"\nlarder_proxy_workers 1.0\n" in await one.metrics()


async def test_a_worker_that_answers_with_an_error_is_silent(tmp_path: Path) -> None:
    one, other = worker(tmp_path, 0), worker(tmp_path, 1)

    def fail() -> None:
        raise web.HTTPInternalServerError

    await other.serve(reload=fail, instances=list, home=lambda _: None)
    assert await one.reload() == 1
    await other.close()
