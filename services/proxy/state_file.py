"""The file in which operators' changes survive the proxy: --state-file. Every call here blocks.

It says what was changed, not what there is: engines of the command line are in it only if they were drained or removed.
It is replaced whole, by a rename after an fsync, so that a crash leaves the old one or the new one; and only under a
lock, so that workers do not overwrite each other's changes. A damaged or foreign file is never taken for one.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal

from larder.errors import LarderError
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from services.proxy.core.endpoint import canonical
from services.proxy.core.engine import Address, Role
from services.proxy.core.membership import Changes, Membership, Wish, without_stale

_VERSION: Final = 1
_BYTES_MAX: Final = 1 << 20
_LOCK_S: Final = 2.0


class StateFileError(LarderError):
    """The file cannot be read or written; str() says why, and how to mend it."""


_Engine = Annotated[str, AfterValidator(canonical)]


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    larder_proxy_instances: Literal[1]  # _VERSION
    prefill: dict[_Engine, Wish]
    decode: dict[_Engine, Wish]


class StateFile:
    def __init__(self, path: Path) -> None:
        self._path = Path(os.path.realpath(path))  # a link to it remains a link
        self._lock = self._path.with_name(f".{self._path.name}.lock")

    def open(self, given: Membership, *, forget: bool = True) -> Membership:
        """Applies it to the given engines when the proxy starts; creates it if there is none. Forget: drop what it says
        of engines that are not given."""
        with self._locked():
            membership = replace(given, changes=self.read() if self._path.exists() else {})
            if forget:
                membership = replace(membership, changes=without_stale(membership))
            self._write(membership.changes)  # so that an unwritable place is noticed now
            return membership

    def update(self, update: Callable[[Changes], Changes]) -> None:
        with self._locked():
            self._write(update(self.read()))

    def read(self) -> Changes:
        try:
            with self._path.open("rb") as file:
                content = file.read(_BYTES_MAX + 1)
        except OSError as error:
            raise StateFileError(f"cannot read the state file {self._path}: {error.strerror}") from error
        try:
            read = json.loads(content)
            version = read.get("larder_proxy_instances") if isinstance(read, dict) else None
            if isinstance(version, int) and version > _VERSION:
                raise StateFileError(f"the state file {self._path} was written by a newer proxy (version {version})")
            state = _Content.model_validate(read)
        except (ValueError, RecursionError) as error:  # ValidationError is one
            reason = "it is not JSON" if not isinstance(error, ValidationError) else _reason(error)
            raise StateFileError(
                f"{self._path} is not a state file of this proxy, or it is damaged: {reason}; "
                "give another --state-file, or move this one away to start with the command line's engines"
            ) from error
        return {
            Role.PREFILL: {Address(address): wish for address, wish in state.prefill.items()},
            Role.DECODE: {Address(address): wish for address, wish in state.decode.items()},
        }

    def _write(self, changes: Changes) -> None:
        content = {"larder_proxy_instances": _VERSION} | {role.value: dict(changes.get(role, {})) for role in Role}
        new = self._path.with_name(f".{self._path.name}.new")
        try:
            with new.open("w") as file:
                json.dump(content, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            raise self._unwritable(error) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            end = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise StateFileError(f"{self._lock} was held by another process for {_LOCK_S:g} s") from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(lock)

    def _unwritable(self, error: OSError) -> StateFileError:
        return StateFileError(
            f"cannot write the state file {self._path}: {error.strerror}; the proxy must be able to create files "
            "in its directory"
        )


def _reason(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    return " ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".split())
