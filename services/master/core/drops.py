"""Remove and Report: what clients have dropped, keys at will and copies that they found corrupt.

Keeps invariants 2 (a removed key stays removed) and 10 (corrupt bytes are offered to nobody else).
"""

from services.master.core import messages as m
from services.master.core.arguments import check_column, check_keys
from services.master.core.calls import Calls
from services.master.core.catalogue import Catalogue
from services.master.core.cluster import Quarantined
from services.master.core.extents import Extents
from services.master.core.messages import Fault, Result
from services.master.core.objects import Copy
from services.master.core.repair import Repair
from services.master.core.tables import State


class Drops:
    def __init__(self, state: State, calls: Calls, extents: Extents, catalogue: Catalogue, repair: Repair) -> None:
        self.state = state
        self.calls = calls
        self.extents = extents
        self.catalogue = catalogue
        self.repair = repair

    def remove(self, command: m.Remove) -> None:
        check_keys(self.state.config, command.keys)
        if not self.calls.begin(command.call, command.request_id, m.Removed):
            return
        self.state.absences.note_removed(command.keys, self.state.next_write_id)
        results: list[Result] = []
        entries: list[Quarantined] = []
        for key in command.keys:
            obj = self.state.objects.get(key)
            if obj is not None and 0 < obj.expires_at <= self.state.now:
                obj = None
            results.append(Result.MISS if obj is None else Result.OK)
            if obj is not None:
                entries += self.catalogue.discard(obj)
        removed = m.Removed(results)
        self.extents.await_forgetting(entries, lambda: self.calls.finish(command.request_id, removed))

    def report(self, command: m.Report) -> None:
        check_keys(self.state.config, command.keys)
        for name in ("slices", "segments", "offsets", "faults"):
            check_column(name, getattr(command, name), len(command.keys))
        dropped = 0
        columns = zip(command.keys, command.slices, command.segments, command.offsets, command.faults, strict=True)
        for key, number, segment, offset, fault in columns:
            if fault is Fault.UNREACHABLE:
                self.state.counters.unreachable_reports += 1
                self.state.unreached.append(segment)
                continue
            obj = self.state.objects.get(key)
            if obj is None or number >= len(obj.slices):
                continue
            dropped += self.repair.drop_corrupt(obj, number, Copy(segment, offset))
        self.calls.reply(command.call, m.Reported(dropped))
