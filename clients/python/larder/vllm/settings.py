"""What `kv_connector_extra_config` may say, checked before an engine starts to load its model.

Pure: a mapping in, a frozen dataclass or InvalidArgument out. An unknown name is refused and the near match named,
because a mistyped option, silently ignored, costs its user a cold cache. Every wait has its bound here
(invariants 12 and 16).
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from larder import options
from larder.errors import InvalidArgument
from larder.options import resolve

EXAMPLE: Final = '{"master": "127.0.0.1:50001"}'
CHUNK_TOKENS: Final = 256
"""Tokens to an object where chunk_blocks is not given: large enough to move well, small enough to be shared."""
COPIES_MAX: Final = 16
TIMEOUT_MS_MAX: Final = 600_000
TIMEOUTS: Final = ("lookup_timeout_ms", "load_timeout_ms", "save_timeout_ms")
"""`timeout_s`, the store's own option, stands for those that are not given."""
HELP: Final = options.HELP | {  # likewise
    "timeout_s": "seconds, in place of those of the three timeouts above that are not given",
    "chunk_blocks": f"blocks of the engine to an object; not given: as many as hold {CHUNK_TOKENS} tokens",
    "namespace": "engines with different ones share nothing; also vouches that weights which have no files here are "
    "the same wherever it is given",
    "copies": "copies of each object that is saved",
    "media_by_content": "names that clients choose for images and sounds (multi_modal_uuids) are not trusted",
    "lookup_timeout_ms": "how long a request may wait to be told what is stored; then it is computed",
    "load_timeout_ms": "how long a load may take; then it is computed",
    "save_timeout_ms": "how long a save may take; then it is given up",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorSettings:
    """The connector's options, named as in kv_connector_extra_config."""

    master: str
    chunk_blocks: int | None = None
    namespace: str = ""
    verify: bool = True
    zone: str = ""
    engine_ports: str | None = None
    transports: Sequence[str] | None = None
    timeout_s: float | None = None
    copies: int = 1
    media_by_content: bool = False
    lookup_timeout_ms: int = 1_000
    load_timeout_ms: int = 2_000
    save_timeout_ms: int = 5_000

    def __post_init__(self) -> None:
        _check(isinstance(self.master, str) and bool(self.master), "master", self.master, "an address, HOST:PORT")
        try:  # what it takes for an address, the store alone knows
            resolve(
                self.master,
                timeout_s=self.timeout_s,
                verify=self.verify,
                transports=self.transports,
                zone=self.zone,
                engine_ports=self.engine_ports,
            )
        except InvalidArgument as error:
            raise InvalidArgument(f"kv_connector_extra_config: {error}") from error
        _check(isinstance(self.namespace, str), "namespace", self.namespace, "text")
        _check(isinstance(self.media_by_content, bool), "media_by_content", self.media_by_content, "true or false")
        _check_int("copies", self.copies, COPIES_MAX)
        for name in TIMEOUTS:
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
    settings = ConnectorSettings(**extra_config)  # type: ignore[arg-type]  # names are checked above, values on init
    if settings.timeout_s is None:
        return settings
    every_ms = max(1, min(int(settings.timeout_s * 1e3), TIMEOUT_MS_MAX))
    given: dict[str, Any] = {name: every_ms for name in TIMEOUTS if name not in extra_config}
    return replace(settings, **given)


def _check_int(name: str, value: object, most: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _check(whole and 1 <= value <= most, name, value, f"a whole number from 1 to {most}")  # type: ignore[operator]


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise InvalidArgument(f"kv_connector_extra_config option {name!r} must be {wanted}, not {value!r}")
