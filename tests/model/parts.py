"""What the world is made of: nodes with memory and messages; puts and promises as clients see them. No behaviour."""

from collections import deque
from dataclasses import dataclass, field

from services.master.core import messages as m
from services.storage_node.core.index import Index


def content(key: bytes, write_id: int, size: int) -> bytes:
    """Bytes that tell which put they are of."""
    pattern = b"<%s:%d>" % (key, write_id)
    return (pattern * (size // len(pattern) + 1))[:size]


@dataclass
class Node:
    name: str
    capacity: int
    incarnation: int = 1
    stream: int | None = None
    index: Index = field(init=False)
    memory: bytearray = field(init=False, repr=False)
    draining: bool = False
    leaving: bool = False  # of its own accord
    segments: list[int] = field(default_factory=list)  # the master's numbers, from Welcome
    to_node: deque[m.Effect] = field(default_factory=deque)
    to_master: deque[m.NodeCommand] = field(default_factory=deque)
    waiting: list[m.Effect] = field(default_factory=list)  # Forgets of extents where a client was stopped

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.index = Index([self.capacity])
        self.memory = bytearray(self.capacity)


@dataclass
class Spot:
    """Where a copy lies, as a client sees it: in the memory the node had then, whatever a later master calls it."""

    node: Node = field(repr=False)
    memory: bytearray = field(repr=False)
    offset: int


@dataclass
class Put:
    """A put between its start and its end, as its client sees it."""

    write_id: int
    key: bytes
    size: int
    lengths: list[int]
    places: list[list[Spot]]  # per slice its copies
    asked_at: int
    written: set[tuple[int, int]] = field(default_factory=set)  # (slice, copy)


@dataclass
class Grant:
    """What a lookup promised: these bytes, there, until then."""

    until: int
    places: list[tuple[Spot, bytes]]
    lease: int = 0  # to be given back; 0 for a hold
