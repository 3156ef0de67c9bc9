"""How much memory this process may still take if its container or systemd unit has a limit.

A process that takes more is killed without warning, so a pool asks first. Control groups of both versions, also nested.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Limit:
    all_bytes: int
    free_bytes: int


def narrowest(own: Path = _OWN, groups: Path = _GROUPS) -> Limit | None:
    """Of the groups this process is in, the one that leaves it least; None if nothing limits it."""
    return min(_limits(own, groups), key=lambda limit: limit.free_bytes, default=None)


def _limits(own: Path, groups: Path) -> Iterator[Limit]:
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            root = groups
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = groups / "memory"
        else:
            continue
        group = root / path.lstrip("/")  # which a container may not see: its own group may be at the root
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                with suppress(OSError, ValueError):
                    yield _limit(folder, *names)


def _limit(group: Path, limit: str, used: str, reclaimable: str) -> Limit:
    """Raises ValueError if there is no limit: the text is `max`."""
    all_bytes, used_bytes = (int((group / name).read_text(encoding="ascii")) for name in (limit, used))
    stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    return Limit(all_bytes, max(0, all_bytes - used_bytes + int(stat.get(reclaimable, 0))))
