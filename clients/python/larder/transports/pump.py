"""The thread that feeds the transfer engine and asks after transfers. No asyncio here but the loop's doorbell.

A flight is prepared (gathered, hashed), submitted, landed, and settled (scattered, verified). Work on many bytes goes
to the copy threads. The engine cannot cancel: a flight that was given up keeps its memory alive and out of use until
the engine has answered for it. In flight to one peer are at most TRANSFERS_MAX transfers and BYTES_MAX bytes, given up
or not (invariant 12).
"""

import atexit
import ctypes
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from larder import forks
from larder.errors import StoreClosed
from larder.places import Fault
from larder.transports.copiers import INLINE_BYTES, Copiers
from larder.transports.flights import Flight, Group, Peer, hash_move, stage, unload
from larder.transports.staging import Buffer

logger = logging.getLogger(__name__)

TRANSFERS_MAX: Final = 64
BYTES_MAX: Final = 64 * 2**20
_NAP_S_MIN: Final = 100e-6  # less takes the core from the engine
_NAP_S_MAX: Final = 1e-3
_LONG_NAP_S: Final = 20e-3
_EXPIRE_EVERY_S: Final = 5e-3

_keep_for_good: Final = ctypes.pythonapi.Py_IncRef
_keep_for_good.restype, _keep_for_good.argtypes = None, [ctypes.py_object]


class Pump:
    """The thread and everything only it touches; others use start(), wake() and stop()."""

    def __init__(self, copiers: Copiers) -> None:
        self._copiers = copiers
        self._inbox: deque[Group] = deque()
        self._jobs_done: deque[tuple[Future[None], Flight, Callable[[], None]]] = deque()
        self._doorbell = threading.Event()
        self._groups: list[Group] = []
        self._peers: list[Peer] = []
        self._air: list[tuple[int, Flight]] = []
        self._moved_at = self._expired_at = 0.0
        self._stopping = self._breaking_off = False
        self._ended = False
        self._then: Callable[[bool], None] = _nothing
        self._door = threading.RLock()  # a collector may drop a store anywhere
        self._thread = threading.Thread(target=self._run, name="larder-engine", daemon=True)
        self._thread.start()
        _pumps.add(self)

    # ---- from other threads ----------------------------------------------------------------------

    def start(self, group: Group) -> None:
        with self._door:
            if not self._ended:
                self._inbox.append(group)
                self._doorbell.set()
                return
        group.fail(Fault.UNREACHABLE)

    def wake(self) -> None:
        self._doorbell.set()

    def stop(self, then: Callable[[bool], None] | None = None) -> None:
        """Ends all groups; the thread goes when the engine has answered for every transfer.

        `then` is called at its end, on it: whether the engine has answered for every transfer.
        """
        with self._door:
            then, self._then = then or self._then, _nothing
            if not self._ended:
                self._stopping, self._then, then = True, then, _nothing
        then(not self._breaking_off)
        self._doorbell.set()

    def break_off(self) -> None:
        """Ends all groups, and the thread with them, whatever is in the air."""
        self._breaking_off = True
        self._doorbell.set()

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread's end; whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._breaking_off and not self._may_end():
                self._turn()
        except Exception:
            logger.exception("the engine's thread failed: it takes a new store to reach other hosts' nodes again")
            self._breaking_off = True
        if self._breaking_off:
            _keep_for_good(self._air)  # nobody asks the engine after it any more, so it is never given back
            with self._door:
                self._ended = True
            for group in [*self._groups, *self._inbox]:
                group.fail(Fault.UNREACHABLE)
        self._then(not self._breaking_off)

    def _may_end(self) -> bool:
        with self._door:
            self._ended = self._stopping and not self._air and not self._groups and not self._inbox
            return self._ended

    def _turn(self) -> None:
        moved = self._take_in() | self._finish_jobs() | self._submit() | self._poll()
        now = time.monotonic()
        if moved:
            self._moved_at = now
        if not self._groups or now - self._expired_at >= _EXPIRE_EVERY_S:  # a nap keeps idle peers
            self._expired_at = now
            self._expire(now)
        self._nap(now - self._moved_at)

    def _nap(self, idle_s: float) -> None:
        if self._groups or self._inbox:
            time.sleep(min(max(idle_s / 8, _NAP_S_MIN), _NAP_S_MAX))
            return
        if self._air:
            self._doorbell.wait(_LONG_NAP_S)
        elif not self._stopping:
            self._doorbell.wait()
        self._doorbell.clear()

    def _take_in(self) -> bool:
        moved = False
        while self._inbox:
            group = self._inbox.popleft()
            if group.peer not in self._peers:
                self._peers.append(group.peer)
            self._groups.append(group)
            for flight in group.flights:
                self._prepare(flight)
            moved = True
        return moved

    def _prepare(self, flight: Flight) -> None:
        """Hashes what is to be written, unless that is done while it is gathered into staging memory."""
        if flight.group.writing and flight.direct and flight.move.hashing:
            self._work(flight, lambda: hash_move(flight.move), lambda: flight.group.peer.queue.append(flight))
        else:
            flight.group.peer.queue.append(flight)

    def _work(self, flight: Flight, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Runs `work` here if it is small, else on a copy thread; then `then` here."""
        if flight.length <= INLINE_BYTES:
            work()
            then()
            return
        flight.busy = True

        def tell(job: Future[None]) -> None:
            self._jobs_done.append((job, flight, then))
            self._doorbell.set()

        try:
            self._copiers.submit(work).add_done_callback(tell)
        except StoreClosed:
            flight.busy = False
            self._end(flight, Fault.LATE)

    def _finish_jobs(self) -> bool:
        moved = bool(self._jobs_done)
        while self._jobs_done:
            job, flight, then = self._jobs_done.popleft()
            job.result()
            flight.busy = False
            then()
        return moved

    # ---- submitting ------------------------------------------------------------------------------

    def _submit(self) -> bool:
        moved = False
        for peer in self._peers:
            while peer.queue and self._has_room(peer, peer.queue[0]):
                flight = peer.queue[0]
                if flight.settled:
                    peer.queue.popleft()
                    continue
                if not flight.direct and flight.staged is None:
                    staged = peer.staging.take(flight.length)
                    if staged is None:
                        break
                    peer.queue.popleft()
                    self._gather(flight, staged)
                else:
                    peer.queue.popleft()
                    self._launch(flight)
                moved = True
        return moved

    def _has_room(self, peer: Peer, flight: Flight) -> bool:
        fits = peer.bytes + flight.length <= BYTES_MAX and peer.transfers < TRANSFERS_MAX
        return fits or not peer.transfers or flight.settled

    def _gather(self, flight: Flight, staged: Buffer) -> None:
        """Into staging memory; a read has nothing to gather."""
        peer = flight.group.peer
        flight.staged = staged
        if flight.group.writing:
            self._work(flight, lambda: stage(flight.move, staged), lambda: peer.queue.appendleft(flight))
        else:
            peer.queue.appendleft(flight)

    def _launch(self, flight: Flight) -> None:
        group, peer = flight.group, flight.group.peer
        if time.monotonic() >= group.until:
            self._end(flight, Fault.LATE)
            return
        if not peer.transfers:
            peer.progress_at = time.monotonic()  # it could not have made any while nothing was asked of it
        peer.bytes += flight.length
        for local, remote, length in flight.transfers():
            batch = peer.engine.submit(peer.endpoint, writing=group.writing, local=local, remote=remote, length=length)
            if not batch:
                flight.failed = True
                break
            flight.in_air += 1
            peer.transfers += 1
            self._air.append((batch, flight))
        if not flight.in_air:
            self._landed(flight)

    # ---- landing ---------------------------------------------------------------------------------

    def _poll(self) -> bool:
        still: list[tuple[int, Flight]] = []
        landed: list[Flight] = []
        for batch, flight in self._air:
            good = flight.group.peer.engine.status(batch)
            if good is None:
                still.append((batch, flight))
                continue
            flight.failed |= not good
            flight.in_air -= 1
            flight.group.peer.transfers -= 1
            flight.group.peer.progress_at = time.monotonic()
            if not flight.in_air:
                landed.append(flight)
        self._air = still
        for flight in landed:
            self._landed(flight)
        return bool(landed)

    def _landed(self, flight: Flight) -> None:
        group, peer = flight.group, flight.group.peer
        peer.bytes -= flight.length
        peer.owed -= flight.owed
        peer.stalled -= flight.stalled
        if flight.settled or flight.failed:
            self._end(flight, Fault.UNREACHABLE)
        elif group.writing:
            self._end(flight, None)
        elif flight.staged is not None or flight.move.checksum:
            outcome: list[bool] = []
            self._work(flight, lambda: outcome.append(unload(flight)), lambda: self._verified(flight, outcome[0]))
        else:
            self._verified(flight, True)

    def _verified(self, flight: Flight, good: bool) -> None:
        late = time.monotonic() >= flight.group.until
        self._end(flight, Fault.LATE if late else None if good else Fault.CORRUPT)

    def _end(self, flight: Flight, fault: Fault | None) -> None:
        """The engine has answered for everything of the flight, or never had it."""
        if flight.staged is not None:
            flight.group.peer.staging.give_back(flight.staged, retired=flight.settled)
            flight.staged = None
        self._settle(flight, fault)

    def _settle(self, flight: Flight, fault: Fault | None) -> None:
        flight.group.settle(flight, fault)
        if not flight.group.left and flight.group in self._groups:
            self._groups.remove(flight.group)

    # ---- giving up -------------------------------------------------------------------------------

    def _expire(self, now: float) -> None:
        for group in list(self._groups):
            if group.cancelled or self._stopping or now >= group.until:
                self._give_up(group, Fault.LATE)
            elif group.peer.transfers and now - max(group.begun_at, group.peer.progress_at) >= group.stall_s:
                self._give_up(group, Fault.STALLED)
        if not self._groups:
            self._peers = [peer for peer in self._peers if peer.transfers]

    def _give_up(self, group: Group, fault: Fault) -> None:
        """Answers for every flight whose memory is not the caller's; what is in the air stays known until it landed."""
        for flight in group.flights:
            if flight.settled or flight.busy:
                continue  # answered for when the copy thread is done with the caller's memory
            if not flight.in_air:
                self._end(flight, fault)
                continue
            self._owe(flight, stalled=fault is Fault.STALLED)
            if flight.binding:
                continue  # answered for when it lands
            if flight.staged is not None:
                group.peer.staging.retire(flight.staged)
            self._settle(flight, fault)

    def _owe(self, flight: Flight, *, stalled: bool) -> None:
        """Notes once that the peer still has to answer for a flight that was given up."""
        peer = flight.group.peer
        peer.owed += not flight.owed
        peer.stalled += stalled and not flight.stalled
        flight.owed, flight.stalled = True, flight.stalled or stalled


def _nothing(_: bool) -> None:
    pass


_pumps: Final[weakref.WeakSet[Pump]] = weakref.WeakSet()


@atexit.register
def _break_all_off() -> None:
    """A thread that is in the engine when the interpreter goes would take the process down with it."""
    pumps = [] if forks.inherited() else list(_pumps)
    for pump in pumps:
        pump.break_off()
    for pump in pumps:
        pump.join(1.0)
