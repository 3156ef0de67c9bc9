"""Values that say whose they are, all through: every 64 bytes name key, put, seed, size and their own place.

So a byte of another object, of an older put or of another offset shows wherever it lies, and a message can say whose it
is. Nothing here knows of clients or histories.
"""

import hashlib
from typing import Final

import numpy as np

CELL_BYTES: Final = 64
_NUMBERS: Final = ("put", "seed", "size", "at", "inverse")
_CELL: Final = np.dtype([("mark", "S8"), ("key", "S16"), *((name, "<u8") for name in _NUMBERS)])
_MARK: Final = b"LARDVALU"
assert _CELL.itemsize == CELL_BYTES


class Wrong(ValueError):
    """These bytes are not one put's; the message says what they are."""


def value(key: bytes, put: int, *, seed: int, size: int) -> bytes:
    """The bytes of put number `put` under `key`."""
    cells = np.zeros(-(-size // CELL_BYTES), dtype=_CELL)
    cells["mark"] = _MARK
    cells["key"] = _digest(key)
    cells["put"], cells["seed"], cells["size"] = put, seed, size
    cells["at"] = np.arange(len(cells), dtype=np.uint64)
    cells["inverse"] = ~cells["at"]
    return cells.tobytes()[:size]


def read(key: bytes, data: bytes | memoryview, *, seed: int) -> int:
    """The number of the put whose bytes these are, every one of them; raises Wrong. At least CELL_BYTES long."""
    found = bytes(data)
    if len(found) < CELL_BYTES:
        raise Wrong(f"{len(found)} bytes, too few for a value")
    first = np.frombuffer(found, dtype=_CELL, count=1)[0]
    put = int(first["put"])
    expected = value(key, put, seed=seed, size=len(found))
    if found == expected:
        return put
    cells = -(-len(found) // CELL_BYTES)
    bad = [
        number
        for number in range(cells)
        if found[number * CELL_BYTES :][:CELL_BYTES] != expected[number * CELL_BYTES :][:CELL_BYTES]
    ]
    middle = bad[len(bad) // 2]
    raise Wrong(f"{len(bad)} of {cells} cells of put {put} are wrong, cell {middle} is {_describe(found, middle)}")


def _describe(data: bytes, number: int) -> str:
    cell = data[number * CELL_BYTES :][:CELL_BYTES]
    if not cell.startswith(_MARK) or len(cell) < CELL_BYTES:
        return cell.hex()
    fields = np.frombuffer(cell, dtype=_CELL)[0]
    return f"cell {fields['at']} of put {fields['put']}, key digest {fields['key'].hex()}, seed {fields['seed']}"


def _digest(key: bytes) -> bytes:
    """16 bytes without a zero at the end: numpy's strings lose those."""
    return hashlib.sha256(key).digest()[:15] + b"."
