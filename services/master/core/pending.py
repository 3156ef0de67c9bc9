"""Calls that wait for their answer: a PutStart for room, a PutEnd for its holders, a Match for a write.

Beside them the write, which stands between a PutStart and its PutEnd, and what goes on once copies are forgotten.
"""

from collections.abc import Callable, Sequence

from services.master.core import messages as m
from services.master.core.messages import Result
from services.master.core.objects import Object, Slice, Terms


class PendingStart:
    """A PutStart some of whose keys wait for room."""

    __slots__ = ("asked_at", "command", "deadline", "next", "results", "terms", "waited", "write_ids")

    def __init__(self, command: m.PutStart, terms: Terms, asked_at: int, deadline: int) -> None:
        self.command = command
        self.asked_at = asked_at
        self.terms = terms
        self.deadline = deadline
        self.results: list[Result] = [Result.OK] * len(command.keys)
        self.write_ids = [0] * len(command.keys)
        self.next = 0  # the first undecided key
        self.waited = False

    def decide(self, result: Result) -> None:
        self.results[self.next] = result
        self.next += 1

    @property
    def size(self) -> int:
        """Of the next object to be decided."""
        return self.command.sizes[self.next]


class PendingEnd:
    """A PutEnd whose answer waits for the nodes."""

    __slots__ = ("copies", "objects", "remaining", "request_id", "results", "until")

    def __init__(self, request_id: bytes, count: int, until: int) -> None:
        self.request_id = request_id
        self.until = until  # how long it may wait for copies made elsewhere
        self.results = [Result.UNKNOWN_WRITE] * count
        self.copies = [0] * count
        self.objects: list[Object | None] = [None] * count  # what became of the writes
        self.remaining = count


class PendingMatch:
    """A Match that waits for the write of the first key it missed."""

    __slots__ = ("answered", "call", "deadline", "hold_ms", "keys", "matched")

    def __init__(self, call: int, hold_ms: int, keys: Sequence[bytes], matched: int, deadline: int) -> None:
        self.call = call
        self.hold_ms = hold_ms
        self.keys = keys
        self.matched = matched
        self.deadline = deadline
        self.answered = False


class PendingForgets:
    """What goes on once nodes have forgotten certain copies, so that no restart brings those back."""

    __slots__ = ("remaining", "then")

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then
        self.remaining = 1  # one for the step itself

    def one_less(self) -> None:
        self.remaining -= 1
        assert self.remaining >= 0
        if not self.remaining:
            self.then()


class Write:
    """A put between its start and its end: its extents are reserved, its bytes count for nothing yet."""

    __slots__ = ("awaiting", "depth", "end", "end_index", "key", "obj", "size", "slices", "terms", "write_id")

    def __init__(self, write_id: int, key: bytes, size: int, depth: int, slices: list[Slice], terms: Terms) -> None:
        self.write_id = write_id
        self.key = key
        self.size = size
        self.depth = depth
        self.slices = slices
        self.terms = terms
        self.end: PendingEnd | None = None  # set once the client has ended it, and nodes record it
        self.end_index = 0
        self.obj: Object | None = None  # what nodes record of it, and what it is to become
        self.awaiting = 0  # records not acknowledged yet
