"""Whether this process may use Larder: not where it was forked from one that had used it.

gRPC's state is one for a process. In a forked child its threads are missing, and what it waits on is shared with the
parent: a call there crashes, hangs, or takes the parent's wake-ups, and so may letting go of a channel; nor does gRPC
say when it has ended after the last channel was closed. So a forked child is refused before it touches gRPC, and what
it inherited stays as it is, transfer engines too. Who forks before the first call has Larder on both sides.

gRPC's own handlers of forks would begin threads in the child, which crash there now and then, whatever the child does.
Unless the operator says otherwise they are switched off, which takes the environment while gRPC is loaded: so this
module comes before whatever loads it. A program that loads gRPC before Larder sets GRPC_ENABLE_FORK_SUPPORT=0 itself.
"""

import ctypes
import importlib
import os
import weakref
from typing import ClassVar, Final

from larder.errors import Unavailable

_SWITCH: Final = "GRPC_ENABLE_FORK_SUPPORT"
_keep_for_good: Final = ctypes.pythonapi.Py_IncRef
_keep_for_good.restype, _keep_for_good.argtypes = None, [ctypes.py_object]
_held: Final[weakref.WeakSet[object]] = weakref.WeakSet()
_used = _inherited = False


class Forked(Unavailable):
    """This process was forked from one that had used Larder."""

    remedy: ClassVar[str] = (
        "start it with multiprocessing's 'spawn' or 'forkserver' instead of 'fork', or fork before Larder's first call"
    )


def cannot_cross(thing: object) -> None:
    """Notes what a forked child must not touch, nor let go of: from now on children are refused."""
    global _used
    _used = True
    _held.add(thing)


def check() -> None:
    """Raises Forked in a process that must not use Larder. Takes no lock: nobody might give it back."""
    if _inherited:
        raise Forked("this process was forked from one that had used Larder, which gRPC cannot bear")


def inherited() -> bool:
    """Whether check() would raise."""
    return _inherited


def _forked() -> None:
    global _inherited
    _inherited = _used
    for thing in list(_held):
        _keep_for_good(thing)


os.register_at_fork(after_in_child=_forked)
if _SWITCH not in os.environ:
    os.environ[_SWITCH] = "0"
    importlib.import_module("grpc")
    del os.environ[_SWITCH]  # it is nobody else's business
