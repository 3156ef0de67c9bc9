"""The pump with an engine that answers when the test says so: bounds, staging, giving up, and its own end."""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import xxhash
from larder.memory import destination, source
from larder.places import Fault
from larder.transports import Move
from larder.transports import flights as flights_module
from larder.transports import pump as pump_module
from larder.transports import staging as staging_module
from larder.transports.copiers import Copiers
from larder.transports.flights import Group, Peer
from larder.transports.pump import Pump
from larder.transports.staging import Staging

KIB = 1024


class ScriptedEngine:
    """Moves bytes to and from `memory`, at once or when told."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.memory = (ctypes.c_char * size)()
        self.base = ctypes.addressof(self.memory)
        self.holds = False
        self.refuses = False
        self.fails = False
        self.breaks = False
        self.in_air: dict[int, tuple[bool, int, int, int]] = {}
        self.most_in_air = self.most_bytes_in_air = 0
        self.submitted: list[tuple[int, int]] = []  # local address, length
        self._next = 1

    def submit(self, endpoint: str, *, writing: bool, local: int, remote: int, length: int) -> int:
        if self.refuses:
            return 0
        self.submitted.append((local, length))
        self.in_air[self._next] = (writing, local, remote, length)
        self.most_in_air = max(self.most_in_air, len(self.in_air))
        self.most_bytes_in_air = max(self.most_bytes_in_air, sum(each[3] for each in self.in_air.values()))
        self._next += 1
        return self._next - 1

    def status(self, batch: int) -> bool | None:
        if self.breaks:
            raise RuntimeError("the engine's binding is broken")
        if self.holds:
            return None
        writing, local, remote, length = self.in_air.pop(batch)
        if self.fails:
            return False
        ctypes.memmove(*((remote, local) if writing else (local, remote)), length)
        return True


class Bench:
    """A pump, a scripted engine, and groups to send through them."""

    def __init__(self) -> None:
        self.copiers = Copiers()
        self.engine = ScriptedEngine()
        self.staging = Staging(lambda address, size: None, lambda address: None)
        self.peer = Peer(self.engine, self.staging, "peer")  # type: ignore[arg-type]
        self.pump = Pump(self.copiers)

    def start(
        self, moves: list[Move], *, writing: bool, seconds: float = 20.0, direct: bool = True
    ) -> tuple[Group, Callable[[], list[Fault | None]]]:
        done = threading.Event()
        answers: list[list[Fault | None]] = []

        def end(faults: list[Fault | None]) -> None:
            answers.append(faults)
            done.set()

        group = Group(
            self.peer,
            moves,
            base=self.engine.base,
            writing=writing,
            until=time.monotonic() + seconds,
            direct=lambda move: direct,
            done=end,
        )
        self.pump.start(group)

        def wait() -> list[Fault | None]:
            assert done.wait(10), "the group does not end"
            assert len(answers) == 1
            return answers[0]

        return group, wait


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.engine.holds = False
    bench.pump.stop()
    assert bench.pump.join(5)
    bench.copiers.close()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.002)


def test_an_idle_peer_is_let_go_of_however_soon_after_the_last_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its engine lives on until the next transfer wakes the pump."""
    monkeypatch.setattr(pump_module, "_EXPIRE_EVERY_S", 3600.0)
    for _ in range(2):
        _, wait = bench.start([Move(source(bytes(100)), 0)], writing=True)
        assert wait() == [None]
        wait_for(lambda: not bench.pump._peers)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("length", [100, 200 * KIB])
def test_there_and_back(bench: Bench, direct: bool, length: int) -> None:
    data = os.urandom(length)
    out = Move(source(data), 7, hashing=True)
    assert bench.start([out], writing=True, direct=direct)[1]() == [None]
    assert out.checksum == xxhash.xxh3_64_intdigest(data)
    assert bench.engine.memory[7 : 7 + length] == data
    target = bytearray(length)
    back = Move(destination(target), 7, checksum=out.checksum)
    assert bench.start([back], writing=False, direct=direct)[1]() == [None]
    assert target == data
    assert back.arrived
    wrong = Move(destination(target), 8, checksum=out.checksum)
    assert bench.start([wrong], writing=False, direct=direct)[1]() == [Fault.CORRUPT]
    assert not wrong.arrived


def test_small_pieces_are_gathered_and_large_ones_are_not(bench: Bench) -> None:
    small, large = [bytes(KIB)] * 10, [bytes(flights_module.PIECE_BYTES_MIN)] * 3
    bench.start([Move(source(small), 0)], writing=True)[1]()
    assert [length for _, length in bench.engine.submitted] == [10 * KIB]
    bench.engine.submitted.clear()
    bench.start([Move(source(large), 0)], writing=True)[1]()
    assert [length for _, length in bench.engine.submitted] == [flights_module.PIECE_BYTES_MIN] * 3


def test_what_is_in_the_air_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "TRANSFERS_MAX", 5)
    moves = [Move(source(bytes(10)), 0) for _ in range(50)]
    assert bench.start(moves, writing=True)[1]() == [None] * 50
    assert bench.engine.most_in_air == 5
    monkeypatch.setattr(pump_module, "BYTES_MAX", 100)
    bench.engine.most_bytes_in_air = 0
    moves = [Move(source(bytes(30)), 0) for _ in range(20)] + [Move(source(bytes(500)), 0)]
    assert bench.start(moves, writing=True)[1]() == [None] * 21
    assert bench.engine.most_bytes_in_air == 500  # one that is larger than the bound goes alone


def test_staging_is_bounded_and_used_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging_module, "BUDGET_BYTES", 3 * staging_module.BUFFER_BYTES_MIN)
    moves = [Move(destination(bytearray(40 * KIB)), 0) for _ in range(30)]
    assert bench.start(moves, writing=False, direct=False)[1]() == [None] * 30
    assert bench.engine.most_in_air <= 3
    assert len({address for address, _ in bench.engine.submitted}) <= 3
    assert bench.staging._used_bytes == 0


def test_a_stalled_transfer_keeps_its_staging_memory_out_of_use(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights_module, "_STALL_S", 0.1)
    bench.engine.holds = True
    target = bytearray(100)
    assert bench.start([Move(destination(target), 0)], writing=False, direct=False)[1]() == [Fault.STALLED]
    assert bench.peer.stalled == 1
    (stale,) = (address for address, _ in bench.engine.submitted)
    assert bench.staging._used_bytes == 0  # retired memory does not count against the living
    assert bench.staging._free == []
    ctypes.memset(bench.engine.base, 7, 100)
    bench.engine.holds = False
    wait_for(lambda: not bench.peer.stalled)
    assert target == bytes(100)
    assert [buffer.address for buffer in bench.staging._free] == [stale]
    assert bench.peer.transfers == bench.peer.bytes == 0


def test_memory_that_is_the_callers_is_waited_for(bench: Bench) -> None:
    bench.engine.holds = True
    target = bytearray(100)
    group, wait = bench.start([Move(destination(target), 0)], writing=False, seconds=0.1)
    time.sleep(0.4)
    assert group.left == 1
    assert bench.peer.owed == 1
    bench.engine.holds = False
    assert wait() == [Fault.LATE]
    assert bench.peer.owed == 0


@pytest.mark.parametrize("private", [True, False])
def test_a_cancelled_group_ends(bench: Bench, private: bool) -> None:
    bench.engine.holds = True
    moves = [Move(destination(bytearray(100)), 0, private=private) for _ in range(3)]
    group, wait = bench.start(moves, writing=False, direct=private)
    wait_for(lambda: bench.engine.in_air)
    group.cancelled = True
    bench.pump.wake()
    assert wait() == [Fault.LATE] * 3
    assert (bench.peer.owed, bench.peer.stalled) == (3, 0)  # in doubt, and yet it may be asked
    bench.engine.holds = False
    wait_for(lambda: not bench.peer.transfers)
    assert bench.peer.owed == 0


def test_what_was_given_up_before_it_was_submitted_never_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "TRANSFERS_MAX", 1)
    bench.engine.holds = True
    moves = [Move(source(bytes(10)), 0) for _ in range(5)]
    _, wait = bench.start(moves, writing=True, seconds=0.1)
    assert wait() == [Fault.LATE] * 5
    bench.engine.holds = False
    wait_for(lambda: not bench.peer.transfers)
    assert len(bench.engine.submitted) == 1
    assert bench.start([Move(source(b"x"), 0)], writing=True)[1]() == [None]


def test_refused_and_failed_transfers(bench: Bench) -> None:
    bench.engine.refuses = True
    assert bench.start([Move(source(b"x"), 0)], writing=True)[1]() == [Fault.UNREACHABLE]
    bench.engine.refuses, bench.engine.fails = False, True
    moves = [Move(source([bytes(64 * KIB)] * 3), 0), Move(source(b"x"), 0)]
    assert bench.start(moves, writing=True)[1]() == [Fault.UNREACHABLE] * 2
    assert bench.peer.transfers == bench.peer.bytes == 0


def test_an_ended_pump_refuses(bench: Bench) -> None:
    bench.pump.stop()
    assert bench.pump.join(5)
    assert bench.start([Move(source(b"x"), 0)], writing=True)[1]() == [Fault.UNREACHABLE]


def test_a_broken_pump_lets_nobody_wait(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.engine.breaks = True
    assert bench.start([Move(source(b"x"), 0)], writing=True)[1]() == [Fault.UNREACHABLE]
    assert bench.start([Move(source(b"x"), 0)], writing=True)[1]() == [Fault.UNREACHABLE]
    assert "the engine's thread failed" in caplog.text


@pytest.mark.parametrize("holds", [True, False])
def test_what_follows_its_end_is_told_whether_anything_is_in_the_air(bench: Bench, holds: bool) -> None:
    bench.engine.holds = holds
    _, wait = bench.start([Move(source(b"x"), 0)], writing=True)
    wait_for(lambda: bench.engine.submitted)
    said: list[bool] = []
    bench.pump.stop(said.append)
    assert wait() == [Fault.LATE if holds else None]
    if holds:
        assert not bench.pump.join(0.1)
        assert not said
        bench.pump.break_off()
    assert bench.pump.join(5)
    assert said == [not holds]
    bench.pump.stop(said.append)
    assert said == [not holds] * 2


def test_who_breaks_off_lets_nobody_wait_and_asks_the_engine_no_more(bench: Bench) -> None:
    bench.engine.holds = True
    target = bytearray(100)
    _, wait = bench.start([Move(destination(target), 0)], writing=False)
    wait_for(lambda: bench.engine.in_air)
    bench.pump.break_off()
    assert wait() == [Fault.UNREACHABLE]
    assert bench.pump.join(5)
    assert bench.engine.in_air
    assert bench.start([Move(source(b"x"), 0)], writing=True)[1]() == [Fault.UNREACHABLE]


def test_what_lands_when_nobody_copies_any_more_is_late(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.engine.holds = True
    target = bytearray(200 * KIB)
    _, wait = bench.start([Move(destination(target), 0)], writing=False, direct=False)
    wait_for(lambda: bench.engine.in_air)
    bench.copiers.close()
    bench.engine.holds = False
    assert wait() == [Fault.LATE]
    assert not caplog.text


def test_waiting_costs_little(bench: Bench) -> None:
    bench.engine.holds = True
    _, wait = bench.start([Move(source(b"x"), 0)], writing=True)
    wait_for(lambda: bench.engine.in_air)
    time.sleep(0.1)
    cpu = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - cpu < 0.15
    bench.engine.holds = False
    assert wait() == [None]
