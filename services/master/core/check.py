"""Derives the core's invariants anew from its tables. For tests and simulators: O(everything), after every step."""

from collections import Counter
from itertools import chain

from services.master.core.allocator import aligned
from services.master.core.cluster import Segment
from services.master.core.master import Master
from services.master.core.messages import Pin
from services.master.core.objects import Copy, Object, Slice
from services.master.core.packed import Run
from services.master.core.phases import Phase


def check(master: Master) -> None:
    """AssertionError if the state contradicts itself."""
    state = master.state
    assert not state.effects
    assert not state.ended_keys
    assert not state.unreached
    assert list(state.names) == sorted(state.objects)
    assert state.object_bytes == sum(obj.size for obj in state.objects.values())
    assert list(state.expiring.values()) == sorted(
        (obj for obj in state.objects.values() if obj.expires_at), key=lambda obj: (obj.expires_at, obj.write_id)
    )
    assert state.pinned_writes == {w.write_id: w for w in state.writes.values() if w.terms.pin == Pin.HARD}
    _check_objects(master)
    _check_missing(master)
    _check_runs(state.objects)
    _check_writes(master)
    for segment in state.segments.values():
        if not segment.gone:
            _check_extents(master, segment)
            assert state.nodes[segment.node.node_id] is segment.node
    assert state.draining == sum(node.draining for node in state.nodes.values())
    _check_outstanding(master)
    for node in state.nodes.values():
        assert node not in master.nodes.adoptions or node.phase is Phase.ATTACHING
        assert (node.stream is None) == (node.phase is Phase.AWAY)
        assert all(segment.live == (node.phase is Phase.LIVE) for segment in node.segments)
        assert node.stream is None or state.streams[node.stream] is node
        assert node.probed_at is None or node.stream is not None
        assert node.claimant is None or master.nodes.claims.waiting[node.claimant].node_id == node.node_id
        assert not (node.outstanding and node.stream is None)


def _check_outstanding(master: Master) -> None:
    """The sender of each command that is not acknowledged knows of it."""
    outstanding = dict(chain.from_iterable(node.outstanding.items() for node in master.state.nodes.values()))
    sent = {
        **dict.fromkeys(master.ends.recording, master.ends),
        **dict.fromkeys(master.transfers.under_way, master.transfers),
        **dict.fromkeys(master.extents.told, master.extents),
    }
    assert outstanding == sent


def _check_objects(master: Master) -> None:
    state = master.state
    assert all(obj.key == key for key, obj in state.objects.items())
    assert all(obj.write_id == write_id for write_id, obj in state.partial.items())
    for table, whole in ((state.objects.values(), True), (state.partial.values(), False)):
        for obj in table:
            key = obj.key
            assert all(part.copies for part in obj.slices) == whole, key
            if whole:
                assert sum(part.length for part in obj.slices) == obj.size, key
            for part in obj.slices:
                _check_distinct(master, part)
                for copy in part.copies:
                    assert obj in state.segments[copy.segment].residents, key
    for segment in state.segments.values():
        assert len(segment.residents) == len(set(segment.residents)), "resident twice"
        for obj in segment.residents:
            assert state.objects.get(obj.key) is obj or state.partial.get(obj.write_id) is obj, obj.key
            assert any(copy.segment == segment.number for part in obj.slices for copy in part.copies)


def _check_missing(master: Master) -> None:
    """What lacks copies is known, unless something is still to be looked at."""
    state = master.state
    assert all(state.objects.get(obj.key) is obj for obj in state.missing)
    if master.repair.is_reviewing or master.nodes.losses.sweeping:
        return
    if all(node.phase is Phase.LIVE for node in state.nodes.values()):
        left = {obj: min(len(part.copies) for part in obj.slices) for obj in state.objects.values()}
        assert state.missing == {obj: obj.wanted - copies for obj, copies in left.items() if copies < obj.wanted}


def _check_runs(objects: dict[bytes, Object]) -> None:
    """The objects of a run before its end are there, in its order, and enough of them to be worth its bytes."""
    runs: dict[Run, list[Object]] = {}
    for obj in objects.values():
        if obj.run is not None:
            runs.setdefault(obj.run, []).append(obj)
    for run, members in runs.items():
        assert run.left == len(members) == len({obj.place for obj in members})
        assert len(run.keys) in (0, run.count * run.width)
        assert len(run.keys) <= 2 * run.left * run.width
        assert len(run.sizes) == (run.count + 1 if run.keys else 0)
        for place in range(run.end):
            obj = objects[run.keys[place * run.width : (place + 1) * run.width]]
            assert (obj.run, obj.place, obj.size) == (run, place, run.sizes[place + 1] - run.sizes[place]), obj.key


def _check_writes(master: Master) -> None:
    state = master.state
    counts: dict[bytes, int] = {}
    for write in state.writes.values():
        counts[write.key] = counts.get(write.key, 0) + 1
        assert (write.end is not None) == (write.awaiting > 0), write.key
        for part in write.slices:
            _check_distinct(master, part)
    assert counts == state.writing
    assert state.replaced.keys() <= counts.keys()
    granted = Counter(write.terms.client for write in state.writes.values())
    for pending in master.puts.waiting:
        granted[pending.command.client] += pending.write_ids.count(0)
    assert {client: count for client, count in granted.items() if count} == master.writes.grants.by_client
    assert granted.total() == master.writes.grants.total
    recording = [write for _, writes in master.ends.recording.values() for write in writes]
    for write in state.writes.values():
        assert recording.count(write) == write.awaiting, write.key


def _check_distinct(master: Master, part: Slice) -> None:
    segments = master.state.segments
    nodes = [segments[copy.segment].node.node_id for copy in part.copies if _is_there(segments, copy)]
    assert len(nodes) == len(set(nodes))


def _is_there(segments: dict[int, Segment], copy: Copy) -> bool:
    return copy.segment in segments and not segments[copy.segment].gone


def _check_extents(master: Master, segment: Segment) -> None:
    """Live, reserved, quarantined and free extents are disjoint and add up to the segment (invariant 3)."""
    live = [(c.offset, aligned(p.length)) for o in segment.residents for c, p in _on(o, segment)]
    reserved = [
        (copy.offset, aligned(part.length))
        for write in master.state.writes.values()
        for part in write.slices
        for copy in part.copies
        if copy.segment == segment.number
    ]
    reserved += [
        (transfer.target.offset, aligned(transfer.length))
        for transfer in master.transfers.under_way.values()
        if transfer.target.segment == segment.number
    ]
    quarantined = [(entry.offset, aligned(entry.length)) for entry in segment.quarantine.values()]
    pinned = sum(aligned(part.length) for o in segment.residents if o.pin == Pin.HARD for _, part in _on(o, segment))
    assert pinned == segment.pinned_bytes
    free = segment.allocator.extents()
    assert sum(size for _, size in live) == segment.live_bytes
    assert sum(size for _, size in reserved) == segment.reserved_bytes
    assert sum(size for _, size in quarantined) == segment.quarantined_bytes
    assert sum(size for _, size in free) == segment.allocator.free_bytes
    assert len(live) == segment.copies
    adoption = master.nodes.adoptions.get(segment.node)
    unclaimed = () if adoption is None else adoption.unclaimed.get(segment.number, ())
    position = 0
    for offset, size in sorted([*live, *reserved, *quarantined, *free, *unclaimed]):
        assert offset == position, f"segment {segment.number}: extent at {offset}, expected {position}"
        position = offset + size
    assert position == segment.capacity


def _on(obj: Object, segment: Segment) -> list[tuple[Copy, Slice]]:
    return [(copy, part) for part in obj.slices for copy in part.copies if copy.segment == segment.number]
