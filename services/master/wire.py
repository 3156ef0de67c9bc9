"""Between the core's values and protobuf. Columns in, columns out; nothing is decided here."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from larder.v1 import master_pb2 as pb
from larder.v1 import node_pb2, types_pb2
from larder.wire import unpack_keys

from services.common.copies import pack_copies, unpack_copies
from services.master.core import messages as m
from services.master.core.packed import PackedKeys
from services.master.driver import Told

CLIENT_ID_BYTES_MAX = 64
REASON_LENGTH_MAX = 1_000
SEGMENTS_KEPT_MAX = 4_096  # messages, since nearly every reply names segments


def results(column: list[m.Result]) -> Any:
    """The core's results as protobuf's: the numbers are the same, only the types differ."""
    return column


def segment_info(segment: types_pb2.Segment) -> m.SegmentInfo:
    """Without the fields that say whose it is: `segment_message` fills them in, as the core knows them."""
    ways = types_pb2.Segment()
    ways.CopyFrom(segment)
    for name in ("id", "node_id", "host_id", "zone"):
        ways.ClearField(name)
    return m.SegmentInfo(segment.capacity_bytes, segment.engine_endpoint, ways.SerializeToString(deterministic=True))


@lru_cache(SEGMENTS_KEPT_MAX)
def segment_message(ref: m.SegmentRef) -> types_pb2.Segment:
    message = types_pb2.Segment.FromString(ref.info.ways)
    message.id, message.node_id, message.host_id, message.zone = ref.number, ref.node_id, ref.host_id, ref.zone
    message.capacity_bytes = ref.info.capacity_bytes
    return message


def places_message(places: m.Places) -> types_pb2.Places:
    return types_pb2.Places(
        segments=list(map(segment_message, places.segments)),
        slice_counts=places.slice_counts,
        slice_lengths=places.slice_lengths,
        checksums=places.checksums,
        copy_counts=places.copy_counts,
        copy_segments=places.copy_segments,
        copy_offsets=places.copy_offsets,
    )


# ---- calls ---------------------------------------------------------------------------------------


def put_start(call: int, request: pb.PutStartRequest, peer: str) -> m.PutStart:
    """`peer`: the connection, stands for clients that do not say who they are."""
    if len(request.client_id) > CLIENT_ID_BYTES_MAX:
        raise ValueError(f"client_id has {len(request.client_id)} bytes: the limit is {CLIENT_ID_BYTES_MAX}")
    return m.PutStart(
        call,
        request.request_id,
        unpack_keys(request.keys),
        list(request.sizes),
        request.copies,
        list(request.depths),
        request.host_id,
        request.wait_ms,
        request.zone,
        request.ttl_ms,
        m.Pin(request.pin),
        request.client_id.hex() or peer,
        request.replace,
    )


def match(call: int, request: pb.MatchRequest) -> m.Match:
    """Keys of one width stay packed: most are never looked at one by one."""
    keys = request.keys
    packed = keys.width and not keys.lengths
    columns = PackedKeys(keys.data, keys.width) if packed else unpack_keys(keys)
    return m.Match(call, columns, request.wait_ms, request.hold_ms)


def put_end(call: int, request: pb.PutEndRequest) -> m.PutEnd:
    failed = zip(request.failed_writes, request.failed_slices, request.failed_copies, strict=True)
    return m.PutEnd(
        call,
        request.request_id,
        list(request.write_ids),
        list(request.slice_counts),
        list(request.checksums),
        list(failed),
        request.wait_ms,
    )


def report(call: int, request: pb.ReportRequest) -> m.Report:
    return m.Report(
        call,
        unpack_keys(request.keys),
        list(request.slices),
        list(request.segment_ids),
        list(request.offsets),
        [m.Fault(fault) for fault in request.faults],
    )


def stat_message(answer: m.Known) -> pb.StatReply:
    return pb.StatReply(
        results=results(answer.results),
        sizes=answer.sizes,
        places=places_message(answer.places),
        silent=answer.silent,
        wanted=answer.wanted,
        pins=answer.pins,
        ttls_ms=answer.ttls_ms,
        leases_ms=answer.leases_ms,
        write_ids=answer.write_ids,
        depths=answer.depths,
        lease_ms=answer.lease_ms,
        lease_id=answer.lease,
    )


def status_message(answer: m.StatusReport, version: str, told: Mapping[str, Told], wall_ms: int) -> pb.StatusReply:
    return pb.StatusReply(
        version=version,
        epoch=answer.epoch,
        objects=answer.objects,
        object_bytes=answer.object_bytes,
        writes_in_flight=answer.writes_in_flight,
        slice_bytes=answer.slice_bytes,
        rested_ms=answer.rested_ms,
        rest_left_ms=answer.rest_left_ms,
        attached=answer.attached,
        wall_ms=wall_ms,
        up_ms=answer.up_ms,
        counts=_counts_message(answer),
        objects_below_target=answer.objects_below_target,
        copies_missing=answer.copies_missing,
        repairs_pending=answer.repairs_pending,
        waiting_puts=answer.waiting_puts,
        nodes=[
            pb.NodeStatus(
                node_id=node.node_id,
                host_id=node.host_id,
                zone=node.zone,
                state=node.state,
                incarnation=node.incarnation,
                draining=node.draining,
                drain_objects=node.drain.objects if node.drain else 0,
                drain_without_room=node.drain.without_room if node.drain else 0,
                **told.get(node.node_id, Told())._asdict(),
                segments=[
                    pb.SegmentStatus(
                        segment=segment_message(segment.segment),
                        live_bytes=segment.live_bytes,
                        reserved_bytes=segment.reserved_bytes,
                        quarantined_bytes=segment.quarantined_bytes,
                        free_bytes=segment.free_bytes,
                        largest_free_bytes=segment.largest_free_bytes,
                        copies=segment.copies,
                        pinned_bytes=segment.pinned_bytes,
                    )
                    for segment in node.segments
                ],
            )
            for node in answer.nodes
        ],
    )


def _counts_message(answer: m.StatusReport) -> pb.Counts:
    counts = asdict(answer.counters)
    for op, asked in answer.asked.items():
        counts[f"{op}_keys"], counts[f"{op}_hit_keys"] = asked.requested_keys, asked.hit_keys
        counts[f"{op}_hit_bytes"] = asked.hit_bytes
    return pb.Counts(**{name: counts[name] for name in pb.Counts.DESCRIPTOR.fields_by_name})


# ---- the nodes' stream ---------------------------------------------------------------------------


def node_command(stream: int, message: node_pb2.NodeMessage, now_ms: int, peer_host: str = "") -> m.NodeCommand:
    """`now_ms`: on the core's clock. ValueError if the message is empty or its columns do not agree."""
    kind = message.WhichOneof("message")
    if kind == "hello":
        hello = message.hello
        segments = [segment_info(segment) for segment in hello.segments]
        return m.Hello(
            stream,
            hello.node_id,
            hello.incarnation,
            hello.epoch,
            hello.host_id,
            segments,
            hello.zone,
            hello.draining,
            f"{hello.host_name} ({hello.address or peer_host})",
        )
    if kind == "inventory":
        return m.Inventory(stream, unpack_copies(message.inventory, now_ms))
    if kind == "inventory_end":
        return m.InventoryEnd(stream)
    if kind == "heartbeat":
        return m.Heartbeat(stream)
    if kind == "ack":
        ack = message.ack
        reasons = [reason[:REASON_LENGTH_MAX] for reason in ack.failed_reasons]
        failed, corrupt = list(ack.failed_command_ids), list(ack.corrupt_command_ids)
        return m.Ack(stream, ack.epoch, list(ack.command_ids), failed, corrupt, reasons)
    if kind == "leave":
        return m.Leave(stream)
    raise ValueError("unknown kind of message")


def to_node(effect: m.ToNode, now_ms: int) -> node_pb2.MasterMessage:
    """`now_ms`: on the core's clock."""
    epoch = effect.epoch
    if isinstance(effect, m.Welcome):
        welcome = node_pb2.Welcome(segment_ids=effect.segments, heartbeat_ms=effect.heartbeat_ms)
        return node_pb2.MasterMessage(epoch=epoch, welcome=welcome)
    if isinstance(effect, m.Record):
        record = node_pb2.Record(command_id=effect.command_id, copies=pack_copies(effect.copies, now_ms))
        return node_pb2.MasterMessage(epoch=epoch, record=record)
    if isinstance(effect, m.Forget):
        segments, offsets, write_ids = zip(*effect.extents, strict=True)
        forget = node_pb2.Forget(
            command_id=effect.command_id,
            segment_ids=segments,
            offsets=offsets,
            write_ids=write_ids,
            lengths=effect.lengths,
        )
        return node_pb2.MasterMessage(epoch=epoch, forget=forget)
    if isinstance(effect, m.Fetch):
        fetch = node_pb2.Fetch(
            command_id=effect.command_id,
            copies=pack_copies([effect.copy], now_ms),
            source=segment_message(effect.source),
            source_offset=effect.source_offset,
            timeout_ms=effect.timeout_ms,
        )
        return node_pb2.MasterMessage(epoch=epoch, fetch=fetch)
    if isinstance(effect, m.Ping):
        return node_pb2.MasterMessage(epoch=epoch, ping=node_pb2.Ping())
    if isinstance(effect, m.Draining):
        return node_pb2.MasterMessage(epoch=epoch, drain=node_pb2.Drain(draining=effect.draining))
    if isinstance(effect, m.Farewell):
        return node_pb2.MasterMessage(epoch=epoch, farewell=node_pb2.Farewell())
    return node_pb2.MasterMessage(epoch=epoch, refuse=node_pb2.Refuse(reason=effect.reason, id_taken=effect.id_taken))
