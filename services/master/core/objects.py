"""Objects and what they are made of: slices, and where the copies of each lie. No decisions here.

Kept lean (slots, tuples, one list a slice): a master holds millions of them.
"""

from typing import NamedTuple

from services.common.held import HeldCopy
from services.master.core.packed import Run


class Near(NamedTuple):
    """Where a caller is; empty if it did not say, or if it does not matter."""

    host_id: str = ""
    zone: str = ""


class Copy(NamedTuple):
    segment: int
    offset: int


class Slice:
    __slots__ = ("checksum", "copies", "length")

    def __init__(self, length: int, checksum: int, copies: list[Copy]) -> None:
        self.length = length
        self.checksum = checksum  # xxh3-64; 0: none recorded
        self.copies = copies


class Object:
    """Bytes under a key: readable when every slice has a copy on a live node."""

    __slots__ = (
        "depth", "expires_at", "held_until", "key", "lease_until", "pin", "place", "readers", "run", "size", "slices",
        "used", "wanted", "write_id",
    )  # fmt: skip

    def __init__(
        self,
        key: bytes,
        write_id: int,
        size: int,
        depth: int,
        slices: list[Slice],
        lease_until: int,
        wanted: int,
        expires_at: int = 0,
        pin: int = 0,
    ) -> None:
        self.key = key
        self.write_id = write_id
        self.size = size
        self.depth = depth
        self.slices = slices
        self.lease_until = lease_until  # the last of all leases and holds
        self.held_until = lease_until  # no lease ends early before that
        self.readers = 0  # leases not given back since the object last had none
        self.used = 0  # last use, as `Traffic` counts them
        self.wanted = wanted  # copies
        self.expires_at = expires_at  # 0: never
        self.pin = pin
        self.run: Run | None = None  # it was put in
        self.place = 0  # in the run


def held(obj: Object, number: int, part: Slice, copy: Copy) -> HeldCopy:
    """The record of a copy of the object's slice `number`, as its node is to have it."""
    return HeldCopy(
        obj.key, obj.write_id, obj.size, len(obj.slices), number, copy.segment, copy.offset, part.length, part.checksum,
        obj.depth, obj.wanted, obj.expires_at, obj.pin,
    )  # fmt: skip


def from_held(record: HeldCopy, lease_until: int) -> Object:
    """The object of which a node has recorded a copy, its slices yet to be filled in."""
    slices = [Slice(0, 0, []) for _ in range(record.slice_count)]
    return Object(
        record.key, record.write_id, record.object_size, record.depth, slices, lease_until, record.wanted,
        record.expires_ms, record.pin,
    )  # fmt: skip


class Terms(NamedTuple):
    """What a put asks for besides its bytes, the same for all its objects."""

    wanted: int  # copies
    ttl_ms: int  # from its end on; 0: for ever
    pin: int
    client: str
    replaces: bool  # what can be read under the key
