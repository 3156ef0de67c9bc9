"""What must be true of puts that replace: the last to end wins, and what it replaced is not seen again."""

from typing import Any

from services.master.core import messages as m
from services.master.core.master import Master
from services.master.core.objects import Object
from services.master.core.phases import Phase
from tests.sim.loop import Violation


def watch_replacing(oracle: Any, core: Master) -> None:
    """Learns the ids that puts get when they end, and what is shown in place of what.

    Where its clock was set back a master's write ids tell nothing of what came before, and the later need not win.
    """
    if core.state.next_write_id < max(oracle.writes, default=0):
        oracle.replaced.clear()
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


def note_kept(oracle: Any, core: Master, write: Any) -> None:
    """What it replaces can return under a later master, with nodes that are away now: nothing else knows of it then."""
    live = {name for name, node in core.state.nodes.items() if node.phase is Phase.LIVE}
    away = [life for name, life in oracle.world.nodes.items() if name not in live]
    for other in {other for other in oracle.writes.values() if other.key == write.key}:
        if other.write_id < write.write_id and oracle._held(other, away):
            oracle.kept[other.write_id] = core.state.epoch


def gives_way(oracle: Any, write: Any) -> None:
    """A put that replaces is told that the key exists where another ended later, and else never."""
    others = [other for other in oracle.writes.values() if other.key == write.key and other is not write]
    ends = [other.end_asked_at[-1] for other in others if other.end_asked_at]
    if write.replaces and max(ends, default=0.0) < write.end_asked_at[0]:
        raise Violation(f"a put that replaces {write.key!r} is told that it exists, and was the last to end")
