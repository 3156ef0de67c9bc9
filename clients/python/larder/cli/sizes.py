"""Sizes as arguments, written as the services take them."""

import re
from typing import Any, Final

import click

from larder.errors import InvalidArgument

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(I?)B?\s*", re.IGNORECASE)
_UNITS: Final = ["", "K", "M", "G", "T", "P"]


def size_of(text: str) -> int:
    """Bytes: 4096, 512MiB (powers of 1,024) or 2GB (powers of 1,000). Raises InvalidArgument."""
    match = _SIZE.fullmatch(text)
    bytes_ = float(match[1]) * (1024 if match[3] else 1000) ** _UNITS.index(match[2].upper()) if match else 0
    if not 1 <= bytes_ < 2**63:
        raise InvalidArgument(f"{text!r} is no size: write bytes, or a number with a unit such as 512MiB or 2GB")
    return int(bytes_)


class SizeArgument(click.ParamType):  # type: ignore[type-arg]  # it is generic from click 8.2 on
    """A size."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else size_of(str(value))
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)
