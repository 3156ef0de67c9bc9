"""The caller's memory as addresses: what a copy loop and a transfer engine need, and nothing else.

Bytes-like objects, numpy arrays and CPU torch tensors (torch is not imported: who has a tensor has done that), or
a list of them, become a Memory: pieces (address, length) in order, and whatever keeps them alive. Nothing here copies.
"""

import ctypes
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from larder.errors import InvalidArgument

_UINT8: Final = np.dtype(np.uint8)
_PYBUF_READ: Final = 0x100
_PYBUF_WRITE: Final = 0x200

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.py_object, [ctypes.c_char_p, ctypes.c_ssize_t]
_bytes_address = ctypes.pythonapi.PyBytes_AsString
_bytes_address.restype, _bytes_address.argtypes = ctypes.c_void_p, [ctypes.py_object]
_memoryview_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memoryview_at.restype, _memoryview_at.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]

Piece = tuple[int, int]
"""Address and length."""


class Memory:
    """Pieces of memory in order. `owner` keeps them alive as long as the Memory lives."""

    __slots__ = ("length", "owner", "pieces")

    def __init__(self, pieces: Sequence[Piece], length: int, owner: Any) -> None:
        self.pieces = pieces
        self.length = length
        self.owner = owner

    def cut(self, start: int, length: int) -> "Memory":
        """The part of `length` bytes from `start`."""
        if start == 0 and length == self.length:
            return self
        if not 0 <= start <= start + length <= self.length:
            raise ValueError(f"bytes {start} to {start + length} of {self.length}")
        pieces: list[Piece] = []
        wanted = length
        for address, size in self.pieces:
            if start >= size:
                start -= size
                continue
            taken = min(size - start, wanted)
            pieces.append((address + start, taken))
            start, wanted = 0, wanted - taken
            if not wanted:
                break
        return Memory(pieces, length, self.owner)


def view_at(address: int, length: int, *, writable: bool = False) -> memoryview:
    """A memoryview of bare memory; the caller sees to it that the memory outlives it."""
    view: memoryview = _memoryview_at(address, length, _PYBUF_WRITE if writable else _PYBUF_READ)
    return view


def fresh_bytes(length: int) -> tuple[bytes, Memory]:
    """A new bytes object to be filled through its Memory before anybody else sees it, as CPython itself does it."""
    if length < 2:  # the interpreter shares objects of 0 and 1 bytes
        raise ValueError("shorter objects are not fresh")
    data: bytes = _new_bytes(None, length)
    return data, Memory(((_bytes_address(data), length),), length, data)


def fresh_memory(length: int) -> Memory:
    """New memory that nobody else knows."""
    return destination(np.empty(length, dtype=np.uint8))


def source(buffer: Any) -> Memory:
    """Memory to read from; raises InvalidArgument."""
    return _memory(buffer, writable=False)


def destination(buffer: Any) -> Memory:
    """Memory to write to; raises InvalidArgument."""
    return _memory(buffer, writable=True)


def _memory(buffer: Any, *, writable: bool) -> Memory:
    if isinstance(buffer, list | tuple):
        parts = [_piece(part, writable) for part in buffer]
        pieces = [piece for piece, _ in parts if piece[1]]
        return Memory(pieces, sum(length for _, length in pieces), [owner for _, owner in parts])
    piece, owner = _piece(buffer, writable)
    return Memory((piece,), piece[1], owner)


def _piece(buffer: Any, writable: bool) -> tuple[Piece, Any]:
    if type(buffer) is bytes and not writable:
        return (_bytes_address(buffer), len(buffer)), buffer
    if isinstance(buffer, np.ndarray):
        array = _flat(buffer)
    elif is_tensor(buffer):
        return _tensor_piece(buffer, writable)
    else:
        array = _array(buffer)
    try:  # takes a quarter of what numpy's own answer takes
        address, readonly = ctypes.addressof(ctypes.c_char.from_buffer(array)), False  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read-only, or empty
        address, readonly = array.__array_interface__["data"]
    if writable and readonly:
        raise InvalidArgument(f"buffer of type {type(buffer).__name__} is read-only: expected a writable one")
    return (address, array.nbytes), array


def _array(buffer: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        view = memoryview(buffer)
    except TypeError as error:
        raise InvalidArgument(
            f"buffer of type {type(buffer).__name__}: expected a bytes-like object, a CPU tensor or a list of them"
        ) from error
    except (ValueError, BufferError) as error:  # a released view, a closed mmap
        raise InvalidArgument(f"buffer of type {type(buffer).__name__} cannot be used: {error}") from error
    if not view.c_contiguous:
        raise InvalidArgument(f"buffer of shape {view.shape} and strides {view.strides} is not contiguous: copy it")
    # numpy refuses empty buffers, and tells no address of one
    return np.frombuffer(view, dtype=np.uint8) if view.nbytes else np.empty(0, dtype=np.uint8)


def _flat(array: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """By numpy's own means: types beyond the buffer protocol, such as bfloat16, have no memoryview."""
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidArgument("masked array: its bytes do not say what is masked; give .filled(value)")
    array = np.asarray(array)
    if not array.flags.c_contiguous:
        raise InvalidArgument(f"array of shape {array.shape} and strides {array.strides} is not contiguous: copy it")
    if array.dtype is _UINT8 and array.ndim == 1:
        return array
    if array.dtype.hasobject:
        raise InvalidArgument("array of Python objects: expected plain numbers")
    if not array.nbytes:  # numpy has no view of elements of 0 bytes
        return np.empty(0, dtype=np.uint8)
    return array.reshape(-1).view(np.uint8)


def is_tensor(value: Any) -> bool:
    """Whether that is a torch tensor. Where nobody has imported torch, nothing is one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def plain(tensor: Any) -> Any:
    """A dense tensor of the same values whose memory holds them, as that of a lazy conjugate or negative does not.

    Raises InvalidArgument for tensors of which that cannot be had exactly.
    """
    if str(tensor.layout) != "torch.strided" or tensor.is_nested:
        kind = "nested" if tensor.is_nested else f"in layout {tensor.layout}"
        raise InvalidArgument(f"tensor {kind}: expected a dense one, as from .to_dense() or .to_padded_tensor()")
    if tensor.is_quantized:
        raise InvalidArgument(
            f"quantised tensor of {tensor.dtype}: its bytes lack scale and zero point; give .int_repr() or .dequantize"
        )
    if not tensor.is_cpu:
        raise InvalidArgument(f"tensor on {tensor.device}: expected a CPU tensor; copy it to (pinned) host memory")
    if tensor._is_zerotensor():
        return tensor.new_zeros(tensor.shape)
    return tensor.resolve_conj().resolve_neg() if tensor.is_conj() or tensor.is_neg() else tensor


def _tensor_piece(tensor: Any, writable: bool) -> tuple[Piece, Any]:
    values = plain(tensor)
    if writable and values is not tensor:
        raise InvalidArgument("tensor whose values are lazy, such as a conjugate: nothing can be read into such a view")
    if not values.is_contiguous():
        raise InvalidArgument(
            f"tensor of shape {tuple(values.shape)} and strides {values.stride()} is not contiguous: "
            "call .contiguous() first"
        )
    length = values.numel() * values.element_size()
    address = _address_of(values)
    if length and not address:
        raise InvalidArgument(f"tensor of type {type(tensor).__name__} has no memory of its own: give a plain one")
    return (address, length), values


def _address_of(tensor: Any) -> int:
    try:
        return int(tensor.data_ptr())
    except RuntimeError:  # a wrapper's, or one that only stands for another
        return 0
