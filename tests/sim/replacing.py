"""What must be true of puts that replace: the last to end wins, and what it replaced is not seen again."""

from typing import Any

from services.master.core import messages as m
from services.master.core.master import Master
from services.master.core.objects import Object
from tests.sim.loop import Violation


def watch_replacing(oracle: Any, core: Master) -> None:
    """Learns the ids that puts get when they end, and what is shown in place of what."""
    step, find_open, show = core.step, core.writes.find_open, core.catalogue.show
    opened: list[tuple[int, Any]] = []

    def watched_step(now: int, command: m.Command) -> list[m.Effect]:
        effects = step(now, command)
        for before, write in opened:
            if write.write_id != before:
                oracle.writes[before].write_id = write.write_id
                oracle.writes[write.write_id] = oracle.writes[before]
                oracle.ended.add(write.write_id)
        opened.clear()
        return effects

    def watched_find_open(write_id: int) -> Any:
        write = find_open(write_id)
        if write is not None:
            opened.append((write_id, write))
        return write

    def watched_show(obj: Object) -> Any:
        olds = oracle.stored.get(obj.key, {})
        for write_id in [write_id for write_id in olds if write_id < obj.write_id]:
            del olds[write_id]
            oracle.world.counts["objects replaced"] += 1
        return show(obj)

    core.step = watched_step  # type: ignore[method-assign]
    core.writes.find_open = watched_find_open  # type: ignore[method-assign]
    core.catalogue.show = watched_show  # type: ignore[method-assign]


def gives_way(oracle: Any, write: Any) -> None:
    """A put that replaces is told that the key exists where another ended later, and else never."""
    others = [other for other in oracle.writes.values() if other.key == write.key and other is not write]
    ends = [other.end_asked_at[-1] for other in others if other.end_asked_at]
    if write.replaces and max(ends, default=0.0) < write.end_asked_at[0]:
        raise Violation(f"a put that replaces {write.key!r} is told that it exists, and was the last to end")
