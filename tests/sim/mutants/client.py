"""The client's promises, broken one by one."""

from dataclasses import replace
from typing import Any

from larder.errors import LarderError
from larder.gets import Getter
from larder.places import Fault
from larder.reads import KeyRead
from larder.rpc import MasterClient
from larder.writes import Write

from tests.sim.mutants.registry import Put, breaks


@breaks("1, 10")
def read_unverified(put: Put) -> None:
    original = Getter.__init__

    def init(self: Getter, *args: Any, verify: bool) -> None:
        original(self, *args, verify=False)

    put(Getter, "__init__", init)


@breaks("10")
def never_fail_over(put: Put) -> None:
    original = KeyRead.__init__

    def init(self: KeyRead, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for read in self.reads:
            del read.copies[1:]

    put(KeyRead, "__init__", init)


@breaks("1")
def keep_memory_of_an_abandoned_read(put: Put) -> None:
    original = KeyRead.bring_home

    def bring_home(self: KeyRead, prepare: Any) -> Any:
        return original(self, lambda index, size: self.landing)

    put(KeyRead, "bring_home", bring_home)


@breaks("7")
def read_beyond_the_lease(put: Put) -> None:
    original = MasterClient.lookup

    async def lookup(self: MasterClient, *args: Any, **kwargs: Any) -> Any:
        return replace(await original(self, *args, **kwargs), until=float("inf"))

    put(MasterClient, "lookup", lookup)


@breaks("7")
def write_beyond_the_time(put: Put) -> None:
    original = MasterClient.put_start

    async def put_start(self: MasterClient, *args: Any, **kwargs: Any) -> Any:
        return replace(await original(self, *args, **kwargs), until=float("inf"))

    put(MasterClient, "put_start", put_start)


@breaks("1, 2")
def hide_failed_copies(put: Put) -> None:
    def fail(self: Write, number: int, copy: int, fault: Fault) -> None:
        """As if it had been written."""

    put(Write, "fail", fail)


@breaks("1, 16")
def miss_where_no_master_answers(put: Put) -> None:
    original = Getter.get

    async def get(self: Getter, keys: Any, *args: Any) -> Any:
        try:
            return await original(self, keys, *args)
        except LarderError:
            return [None] * len(keys)

    put(Getter, "get", get)


@breaks("12")
def wait_without_a_deadline(put: Put) -> None:
    original = MasterClient._call

    async def call(self: MasterClient, name: str, request: Any, deadline: float) -> Any:
        return await original(self, name, request, deadline + 5.0)

    put(MasterClient, "_call", call)
