"""Engines' names, with a resolver that answers, fails or hangs as told."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from services.proxy.engine_http import names as names_module
from services.proxy.engine_http.names import Names

TEMPORARY = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class Resolver:
    """Stands for the system's, which is asked for names only: numbers stand for themselves."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self.answers: dict[str, str | OSError] = {}
        self.asked: list[str] = []
        self.hanging = threading.Event()
        self.hanging.set()

    def getaddrinfo(self, host: str, port: int, *, flags: int = 0, **options: Any) -> Any:
        if flags & socket.AI_NUMERICHOST:
            return self._system(host, port, flags=flags, **options)
        self.asked.append(host)
        answer = self.answers.get(host)
        if answer is None:
            self.hanging.wait(20)
            raise TEMPORARY
        if isinstance(answer, OSError):
            raise answer
        return self._system(answer, port, **options)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver(socket.getaddrinfo)
    monkeypatch.setattr(names_module.socket, "getaddrinfo", resolver.getaddrinfo)
    yield resolver
    resolver.hanging.set()


async def ip(names: Names, host: str) -> str:
    return str((await names.addresses(host, 80))[0][4][0])


async def test_a_name_is_looked_up_once_for_all_and_a_failure_is_not_remembered(resolver: Resolver) -> None:
    names = Names()
    resolver.answers["engine"] = TEMPORARY
    failed = await asyncio.gather(*(ip(names, "engine") for _ in range(5)), return_exceptions=True)
    assert failed == [TEMPORARY] * 5
    resolver.answers["engine"] = "127.0.0.2"
    assert await asyncio.gather(*(ip(names, "engine") for _ in range(5))) == ["127.0.0.2"] * 5
    assert await ip(names, "engine") == "127.0.0.2"
    assert resolver.asked == ["engine"] * 2


async def test_names_that_hang_hold_up_no_others(resolver: Resolver) -> None:
    names = Names()
    resolver.hanging.clear()
    resolver.answers["there"] = "127.0.0.2"
    gone = [asyncio.create_task(ip(names, f"gone-{number}")) for number in range(40)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(ip(names, "there"), 5) == "127.0.0.2"
    resolver.hanging.set()
    assert await asyncio.gather(*gone, return_exceptions=True) == [TEMPORARY] * 40


async def test_a_number_stands_for_itself(resolver: Resolver) -> None:
    assert [await ip(Names(), host) for host in ("127.0.0.3", "::1")] == ["127.0.0.3", "::1"]
    assert not resolver.asked


@pytest.mark.parametrize("trouble", [TEMPORARY, None])
async def test_while_the_resolver_fails_or_hangs_its_last_answer_counts(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, trouble: OSError | None
) -> None:
    monkeypatch.setattr(names_module, "_FRESH_S", 0.0)
    names = Names()
    resolver.answers["engine"] = "127.0.0.2"
    assert await ip(names, "engine") == "127.0.0.2"
    resolver.hanging.clear()
    del resolver.answers["engine"]
    if trouble is not None:
        resolver.answers["engine"] = trouble
    assert await asyncio.wait_for(ip(names, "engine"), 5) == "127.0.0.2"
    resolver.hanging.set()
    resolver.answers["engine"] = "127.0.0.4"
    for _ in range(500):  # the lookup that hung ends first
        if await ip(names, "engine") == "127.0.0.4":
            return
        await asyncio.sleep(0.01)
    pytest.fail("the new address is not taken")


@pytest.mark.parametrize(("stale_s", "error"), [(60.0, UNKNOWN), (0.0, TEMPORARY)])
async def test_its_last_answer_does_not_count_for_ever(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, stale_s: float, error: socket.gaierror
) -> None:
    monkeypatch.setattr(names_module, "_FRESH_S", 0.0)
    monkeypatch.setattr(names_module, "_STALE_S", stale_s)
    names = Names()
    resolver.answers["engine"] = "127.0.0.2"
    assert await ip(names, "engine") == "127.0.0.2"
    resolver.answers["engine"] = error
    with pytest.raises(socket.gaierror):
        await ip(names, "engine")


async def test_names_no_longer_asked_for_are_forgotten(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "_STALE_S", 0.0)
    names = Names()
    for number in range(50):
        resolver.answers[f"pod-{number}"] = "127.0.0.2"
        await ip(names, f"pod-{number}")
    assert len(names._names) == 1
