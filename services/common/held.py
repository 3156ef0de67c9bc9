"""The record of a copy: what a storage node holds of one slice, and all that a master learns of its object from there.

Pure, for both services' cores know it. Its fields stand in the order of the columns of `larder.v1.Copies`, by which
`copies` packs and unpacks them: a new field goes here and into the proto, at the end. How it comes from an object, and
goes into one, is said in `services.master.core.objects`.
"""

from typing import NamedTuple


class HeldCopy(NamedTuple):
    """A tuple: thousands of them are made in one call. A field whose default is 0 may be missing in a message."""

    key: bytes
    write_id: int  # which put the bytes are of
    object_size: int
    slice_count: int  # of the whole object
    slice_index: int
    segment: int  # numbered as by whoever has this record: by the master, or by the node itself
    offset: int
    length: int
    checksum: int
    depth: int
    wanted: int = 1  # copies of the object
    expires_ms: int = 0  # on the clock of whoever has this record; 0: never. The master says when it is over
    pin: int = 0  # as the master gave it
