"""Media by content: a digest of what the model reads of an image, a sound or a video."""

import hashlib
from typing import Any

import torch

Media = tuple[int, bytes | None]
"""The token at which it begins, and its digest; None where its content cannot be seen from here."""


def digest_of_media(feature: Any) -> Media:
    """The digest of one of a request's features, whatever identifier it came with."""
    at = int(feature.mm_position.offset)
    hasher = hashlib.blake2b(feature.modality.encode() + b"\0", digest_size=16)
    try:
        data = feature.data.get_data()
        for name in sorted(data):
            hasher.update(name.encode() + b"\0")
            _update(hasher, data[name])
    except (AttributeError, TypeError):  # left out on the way, or in memory that only workers see
        return at, None
    return at, hasher.digest()


def _update(hasher: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise TypeError("not in this process's memory")
        hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
        hasher.update(value.detach().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, list | tuple):
        hasher.update(f"[{len(value)}".encode())
        for part in value:
            _update(hasher, part)
    elif value is None or isinstance(value, bool | int | float | str):
        hasher.update(f"{type(value).__name__}{value!r}\0".encode())
    else:
        raise TypeError(f"no digest of {type(value).__name__}")
