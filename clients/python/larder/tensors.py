"""A tensor as an object: a header of HEADER_BYTES (magic, then JSON with dtype and shape), then the bytes. No pickle.

torch is imported only by who reads a tensor; who writes one has imported it.
"""

import json
from typing import Any, Final

import numpy as np

from larder.errors import InvalidArgument
from larder.memory import is_tensor, plain

MAGIC: Final = b"LARDTNSR"
HEADER_BYTES: Final = 256
"""Keeps the data aligned for any dtype and any vector unit."""


def parts(tensor: Any) -> list[Any]:
    """A torch tensor's header and its values, the buffers of one object; raises InvalidArgument."""
    if not is_tensor(tensor):
        raise InvalidArgument(f"expected a torch tensor, got {type(tensor).__name__}; put() takes other buffers")
    values = plain(tensor)
    facts = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    packed = MAGIC + json.dumps(facts, separators=(",", ":")).encode()
    if len(packed) > HEADER_BYTES:
        raise InvalidArgument(f"tensor of {len(tensor.shape)} dimensions: too many")
    return [packed.ljust(HEADER_BYTES), values]


def unpack(data: "np.ndarray[Any, np.dtype[np.uint8]]", key: bytes) -> Any:
    """A torch tensor over `data`, which it keeps; raises InvalidArgument if it is not one."""
    import torch

    head = data[:HEADER_BYTES].tobytes()
    try:
        if not head.startswith(MAGIC):
            raise ValueError("it does not begin as one")
        facts = json.loads(head[len(MAGIC) :])
        dtype = getattr(torch, facts["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError("unknown dtype")
        flat = torch.from_numpy(data)[HEADER_BYTES:].view(dtype)
        return flat.reshape(facts["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InvalidArgument(f"this object was not put by put_tensor: {error}", key=key) from error
