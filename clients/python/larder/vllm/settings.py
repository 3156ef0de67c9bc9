"""What `kv_connector_extra_config` may say, checked before an engine starts to load its model.

Pure: a mapping in, a frozen dataclass or InvalidArgument out. An unknown name is refused and the near match named,
because a mistyped option that is silently ignored costs its user a cold cache. Every wait has its bound here
(invariants 12 and 16).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from larder.errors import InvalidArgument
from larder.options import ZONE_LENGTH_MAX

EXAMPLE: Final = '{"master": "127.0.0.1:50001"}'
CHUNK_TOKENS: Final = 256
"""Tokens to an object where chunk_blocks is not given: large enough to move well, small enough to be shared."""
COPIES_MAX: Final = 16
TIMEOUT_MS_MAX: Final = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorSettings:
    """The connector's options, named as in kv_connector_extra_config."""

    master: str
    chunk_blocks: int | None = None
    namespace: str = ""
    verify: bool = True
    zone: str = ""
    copies: int = 1
    media_by_content: bool = False
    lookup_timeout_ms: int = 1_000
    load_timeout_ms: int = 2_000
    save_timeout_ms: int = 5_000

    def __post_init__(self) -> None:
        _check(isinstance(self.master, str) and bool(self.master), "master", self.master, "an address, HOST:PORT")
        _check(isinstance(self.namespace, str), "namespace", self.namespace, "text")
        _check(
            isinstance(self.zone, str) and len(self.zone) <= ZONE_LENGTH_MAX, "zone", self.zone, "a label, as --zone"
        )
        for name in ("verify", "media_by_content"):
            _check(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        _check_int("copies", self.copies, COPIES_MAX)
        for name in ("lookup_timeout_ms", "load_timeout_ms", "save_timeout_ms"):
            _check_int(name, getattr(self, name), TIMEOUT_MS_MAX)
        if self.chunk_blocks is not None:
            _check_int("chunk_blocks", self.chunk_blocks, 1 << 20)

    def blocks_per_chunk(self, block_tokens: int) -> int:
        """Blocks to an object, for blocks of `block_tokens` tokens."""
        return self.chunk_blocks or max(1, CHUNK_TOKENS // block_tokens)


def parse(extra_config: Mapping[str, object]) -> ConnectorSettings:
    """The settings in kv_connector_extra_config; raises InvalidArgument that names the option and how to mend it."""
    known = [field.name for field in fields(ConnectorSettings)]
    for name in extra_config:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
            raise InvalidArgument(f"kv_connector_extra_config has no option {name!r}; {hint}")
    if "master" not in extra_config:
        raise InvalidArgument(f"kv_connector_extra_config needs the master's address, for example {EXAMPLE}")
    return ConnectorSettings(**extra_config)  # type: ignore[arg-type]  # names are checked above, values on init


def _check_int(name: str, value: object, most: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _check(whole and 1 <= value <= most, name, value, f"a whole number from 1 to {most}")  # type: ignore[operator]


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise InvalidArgument(f"kv_connector_extra_config option {name!r} must be {wanted}, not {value!r}")
