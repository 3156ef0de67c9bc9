"""--state-file: what operators changed survives the proxy; a file that cannot be trusted is refused."""

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.proxy.app import Proxy
from services.proxy.config import ProxySettings
from services.proxy.core.engine import Address, Role
from services.proxy.core.fleet import Fleet
from services.proxy.core.membership import AlreadyThere, Membership, NotThere, TooMany, Wish
from services.proxy.engine_http.upstream import Upstream
from services.proxy.state_file import StateFile, StateFileError
from tests.unit.proxy.fake_engine import Engine

A, B, C = Address("10.0.0.1:1"), Address("10.0.0.2:2"), Address("[fd00::3]:3")
GIVEN = Membership({Role.PREFILL: (A,), Role.DECODE: (B,)})
KEY = {"X-API-Key": "sesame"}


def content(**roles: dict[str, str]) -> str:
    return json.dumps({"larder_proxy_instances": 1, "prefill": {}, "decode": {}} | roles)


# -- what a change is


def test_changes_override_what_is_given() -> None:
    changed = GIVEN.added(Role.DECODE, C).drained(Role.DECODE, B).removed(Role.PREFILL, A)
    assert changed.engines(Role.PREFILL) == {}
    assert changed.engines(Role.DECODE) == {B: Wish.DRAINING, C: Wish.ACTIVE}
    assert list(changed.engines(Role.DECODE)) == [B, C]
    back = changed.added(Role.PREFILL, A).added(Role.DECODE, B).removed(Role.DECODE, C)
    assert not any(back.changes.values())


def test_an_impossible_change_is_an_error() -> None:
    with pytest.raises(AlreadyThere):
        GIVEN.added(Role.DECODE, B)
    gone = GIVEN.removed(Role.DECODE, B)
    for change in (gone.removed, gone.drained):
        with pytest.raises(NotThere):
            change(Role.DECODE, B)
    full = GIVEN
    for port in range(1, 1024):
        full = full.added(Role.DECODE, Address(f"10.1.0.0:{port}"))
    with pytest.raises(TooMany):
        full.added(Role.DECODE, C)


def test_the_fleet_becomes_what_it_should_be_and_keeps_what_it_knows() -> None:
    fleet = Fleet()
    GIVEN.bring(fleet)
    kept = fleet.get(Role.DECODE, B)
    changed = GIVEN.added(Role.DECODE, C).drained(Role.DECODE, B).removed(Role.PREFILL, A)
    for _ in range(2):
        changed.bring(fleet)
        assert fleet.engines(Role.PREFILL) == ()
        assert [(engine.address, engine.draining) for engine in fleet.engines(Role.DECODE)] == [(B, True), (C, False)]
        assert fleet.get(Role.DECODE, B) is kept
    GIVEN.bring(fleet)
    assert kept is not None
    assert not kept.draining
    assert fleet.get(Role.DECODE, C) is None


# -- the file


def test_changes_survive(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    assert file.open(GIVEN).engines(Role.DECODE) == {B: Wish.ACTIVE}
    file.update(lambda changes: Membership(GIVEN.given, changes).added(Role.DECODE, C).drained(Role.DECODE, B).changes)
    again = StateFile(tmp_path / "state.json").open(GIVEN)
    assert again.engines(Role.DECODE) == {B: Wish.DRAINING, C: Wish.ACTIVE}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".state.json.lock", "state.json"]


def test_a_removal_is_forgotten_once_the_engine_is_no_longer_given(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    file.open(GIVEN)
    file.update(lambda changes: Membership(GIVEN.given, changes).removed(Role.DECODE, B).changes)
    assert file.open(GIVEN).engines(Role.DECODE) == {}
    file.open(Membership({Role.PREFILL: (A,), Role.DECODE: (C,)}))
    assert file.open(GIVEN).engines(Role.DECODE) == {B: Wish.ACTIVE}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not JSON"),
        (content()[:-5], "it is not JSON"),
        ("\x00" * 100, "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "not a state file of this proxy"),
        ("{}", "larder_proxy_instances: Field required"),
        ('{"name": "package", "version": 1}', "larder_proxy_instances: Field required"),
        (content() .replace("1", "2"), "was written by a newer proxy (version 2)"),
        (content(decode={"10.0.0.1:1": "asleep"}), "decode.10.0.0.1:1: Input should be"),
        (content(decode={"10.0.0.1": "active"}), "'10.0.0.1' is not HOST:PORT"),
        (content(encode={}), "encode: Extra inputs are not permitted"),
        (content(decode=[]), "decode: Input should be a valid dictionary"),  # type: ignore[arg-type]
        (content(decode={f"10.0.0.1:{port}": "active" for port in range(1, 60_000)}), "it is not JSON"),
    ],
)  # fmt: skip
def test_anything_but_a_state_file_is_refused_and_left_as_it_is(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(StateFileError) as refused:
        StateFile(path).open(GIVEN)
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)
    assert path.read_text() == text


def test_an_unwritable_directory_is_noticed_at_once(tmp_path: Path) -> None:
    with pytest.raises(StateFileError, match=r"cannot write the state file .*No such file or directory"):
        StateFile(tmp_path / "missing" / "state.json").open(GIVEN)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StateFileError, match=r"cannot read the state file .*Is a directory"):
        StateFile(tmp_path / "folder").open(GIVEN)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StateFile(tmp_path / "state.json")
    file.open(GIVEN.removed(Role.DECODE, B))
    before = (tmp_path / "state.json").read_text()

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateFileError, match="No space left"):
        file.update(lambda _: {Role.DECODE: {C: Wish.ACTIVE}})
    assert (tmp_path / "state.json").read_text() == before
    assert not (tmp_path / ".state.json.new").exists()


def test_the_file_is_replaced_once_the_new_one_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    file = StateFile(path)
    file.open(GIVEN)
    before = path.read_text()
    is_old = []
    monkeypatch.setattr(os, "fsync", lambda _: is_old.append(path.read_text() == before))
    with path.open() as held:
        file.update(lambda _: {Role.DECODE: {C: Wish.ACTIVE}})
        assert held.read() == before  # never half of either
    assert is_old == [True, False]  # first the new file, then its name


def test_simultaneous_changes_are_all_kept(tmp_path: Path) -> None:
    StateFile(tmp_path / "state.json").open(GIVEN)

    def add(first: int) -> None:
        file = StateFile(tmp_path / "state.json")  # as another process would
        for port in range(first, first + 10):
            address = Address(f"10.0.0.9:{port}")
            file.update(lambda changes: Membership(GIVEN.given, changes).added(Role.DECODE, address).changes)  # noqa: B023

    threads = [threading.Thread(target=add, args=(first,)) for first in (10, 20, 30, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(StateFile(tmp_path / "state.json").open(GIVEN).engines(Role.DECODE)) == 41


# -- the proxy


async def tell(cluster: Any, what: str, address: str) -> tuple[int, Any]:
    body = {"type": "decode", "instance": address}
    async with cluster.client.post(f"/instances/{what}", json=body, headers=KEY) as response:
        return response.status, await response.json()


async def test_changes_survive_a_restart_of_the_proxy(start_cluster: Any, tmp_path: Path) -> None:
    spare = (await start_cluster(0, 1)).decodes[0]
    settings = {"admin_api_key": "sesame", "state_file": tmp_path / "state.json"}
    first = await start_cluster(0, 1, **settings)
    assert (await tell(first, "add", spare.address))[0] == 200
    assert (await tell(first, "remove", first.decodes[0].address))[0] == 200
    await first.stop()
    again = await start_cluster(0, 0, decode=(first.decodes[0].address,), **settings)
    async with again.client.get("/status") as response:
        assert (await response.json())["decode_nodes"] == [spare.address]
    assert (await again.complete())[0] == 200


async def test_a_change_that_cannot_be_saved_is_not_made(start_cluster: Any, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    cluster = await start_cluster(0, 1, admin_api_key="sesame", state_file=folder / "state.json")
    (folder / "state.json").unlink()
    status, answer = await tell(cluster, "remove", cluster.decodes[0].address)
    assert status == 500
    assert answer["detail"].startswith("The change was not made because it could not be saved: cannot read")
    assert (await cluster.complete())[0] == 200


@pytest.mark.parametrize("address", ["10.0.0.1:1", "example.com:1"])
async def test_an_engine_added_where_none_is_allowed_any_more_prevents_the_start(
    start_cluster: Any, tmp_path: Path, address: str
) -> None:
    path = tmp_path / "state.json"
    path.write_text(content(decode={address: "active"}))
    with pytest.raises(StateFileError, match=f"{address}, which --instance-allow forbids"):
        await start_cluster(state_file=path, instance_allow=("127.0.0.0/8",))


async def test_no_engine_is_called_before_it_is_known_to_be_allowed(tmp_path: Path) -> None:
    """When a worker starts, which takes up the file again before it listens."""
    path = tmp_path / "state.json"
    async with Engine("added").serving() as engine:
        path.write_text(content(decode={engine.address: "active"}))
        settings = ProxySettings(decode=("127.0.0.1:9",), state_file=path, instance_allow=("10.0.0.0/8",))
        upstream = Upstream(connect_timeout_s=1)
        proxy = Proxy(settings, upstream, CollectorRegistry(), accepting=lambda: True)
        proxy.members.reload()
        await asyncio.sleep(0.2)
        with pytest.raises(StateFileError, match="--instance-allow forbids"):
            await proxy.admin.check()
        assert engine.probes == 0
        await proxy.health.close()
        await upstream.close()


@pytest.mark.parametrize("address", ["10.0.0.1:1", "example.com:1"])
async def test_a_draining_engine_where_none_is_allowed_any_more_is_forgotten(
    start_cluster: Any, tmp_path: Path, address: str
) -> None:
    """As a rule the command line gave it by name and no longer does: it has been replaced."""
    path = tmp_path / "state.json"
    path.write_text(content(decode={address: "draining"}))
    cluster = await start_cluster(0, 1, state_file=path, instance_allow=("127.0.0.0/8",))
    async with cluster.client.get("/status") as response:
        assert (await response.json())["decode_nodes"] == [cluster.decodes[0].address]
    assert json.loads(path.read_text()) == json.loads(content())
