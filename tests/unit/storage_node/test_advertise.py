"""The address that clients are told; what comes of it between hosts is tests/e2e/test_addresses."""

import asyncio
import logging

import pytest

from services.storage_node import advertise
from services.storage_node.advertise import AddressError, own_address

LOCAL, REMOTE = "127.0.0.1:50001", "10.1.1.1:50001"
WAYS = {LOCAL: "127.0.0.1", REMOTE: "10.1.1.2", "10.1.1.2:50001": "10.1.1.2", "[fd00::1]:50001": "fd00::2"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    async def towards(master: str) -> str:
        return WAYS.get(master, "")

    monkeypatch.setattr(advertise, "_towards", towards)
    monkeypatch.setattr(advertise, "_RETRY_S", 0.01)


@pytest.mark.parametrize(
    ("host", "told", "masters", "expected"),
    [
        ("", "", [LOCAL], "127.0.0.1"),
        ("", "", [REMOTE], "10.1.1.2"),
        ("", "", [LOCAL, REMOTE], "10.1.1.2"),  # the one that others can use
        ("", "", ["[fd00::1]:50001"], "fd00::2"),
        ("0.0.0.0", "", [REMOTE], "10.1.1.2"),  # noqa: S104  (to listen on)
        ("::", "", [REMOTE], "10.1.1.2"),
        ("10.9.9.9", "", [REMOTE], "10.9.9.9"),
        ("10.9.9.9", "10.8.8.8", [REMOTE], "10.8.8.8"),
        ("127.0.0.1", "10.8.8.8", [REMOTE], "10.8.8.8"),
        ("127.0.0.1", "", [LOCAL], "127.0.0.1"),
        ("127.0.0.1", "", ["10.1.1.2:50001"], "127.0.0.1"),  # the master is on this host
        ("127.0.0.1", "", ["unknown:1"], "127.0.0.1"),
    ],
)
async def test_what_is_told(host: str, told: str, masters: list[str], expected: str) -> None:
    assert await own_address(host, told, masters, asyncio.Event()) == expected


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1", "localhost"])
async def test_loopback_towards_another_host_is_refused_by_the_flag_that_says_it(loopback: str) -> None:
    for host, told, flag in ((loopback, "", "--host"), ("10.9.9.9", loopback, "--advertise")):
        with pytest.raises(AddressError, match=rf"^{flag} {loopback}: the master at {REMOTE} is on another host"):
            await own_address(host, told, [LOCAL, REMOTE], asyncio.Event())


async def test_it_waits_for_a_way_and_can_be_stopped(caplog: pytest.LogCaptureFixture) -> None:
    stop = asyncio.Event()
    waiting = asyncio.create_task(own_address("", "", ["unknown:1"], stop))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    stop.set()
    assert await waiting == ""
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "unknown:1" in caplog.text
