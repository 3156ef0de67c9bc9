from larder.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fault(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAULT_UNSPECIFIED: _ClassVar[Fault]
    FAULT_CORRUPT: _ClassVar[Fault]
    FAULT_UNREACHABLE: _ClassVar[Fault]
FAULT_UNSPECIFIED: Fault
FAULT_CORRUPT: Fault
FAULT_UNREACHABLE: Fault

class PutStartRequest(_message.Message):
    __slots__ = ("request_id", "keys", "sizes", "copies", "depths", "host_id", "wait_ms", "zone", "ttl_ms", "pin", "client_id", "replace")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    DEPTHS_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    keys: _types_pb2.Keys
    sizes: _containers.RepeatedScalarFieldContainer[int]
    copies: int
    depths: _containers.RepeatedScalarFieldContainer[int]
    host_id: str
    wait_ms: int
    zone: str
    ttl_ms: int
    pin: _types_pb2.Pin
    client_id: bytes
    replace: bool
    def __init__(self, request_id: _Optional[bytes] = ..., keys: _Optional[_Union[_types_pb2.Keys, _Mapping]] = ..., sizes: _Optional[_Iterable[int]] = ..., copies: _Optional[int] = ..., depths: _Optional[_Iterable[int]] = ..., host_id: _Optional[str] = ..., wait_ms: _Optional[int] = ..., zone: _Optional[str] = ..., ttl_ms: _Optional[int] = ..., pin: _Optional[_Union[_types_pb2.Pin, str]] = ..., client_id: _Optional[bytes] = ..., replace: bool = ...) -> None: ...

class PutStartReply(_message.Message):
    __slots__ = ("results", "write_ids", "places", "write_ttl_ms", "shortage", "remedy")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    WRITE_IDS_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    WRITE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    SHORTAGE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedScalarFieldContainer[_types_pb2.Result]
    write_ids: _containers.RepeatedScalarFieldContainer[int]
    places: _types_pb2.Places
    write_ttl_ms: int
    shortage: str
    remedy: str
    def __init__(self, results: _Optional[_Iterable[_Union[_types_pb2.Result, str]]] = ..., write_ids: _Optional[_Iterable[int]] = ..., places: _Optional[_Union[_types_pb2.Places, _Mapping]] = ..., write_ttl_ms: _Optional[int] = ..., shortage: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class PutEndRequest(_message.Message):
    __slots__ = ("request_id", "write_ids", "checksums", "failed_writes", "failed_slices", "failed_copies", "slice_counts", "wait_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WRITE_IDS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    FAILED_WRITES_FIELD_NUMBER: _ClassVar[int]
    FAILED_SLICES_FIELD_NUMBER: _ClassVar[int]
    FAILED_COPIES_FIELD_NUMBER: _ClassVar[int]
    SLICE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    write_ids: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    failed_writes: _containers.RepeatedScalarFieldContainer[int]
    failed_slices: _containers.RepeatedScalarFieldContainer[int]
    failed_copies: _containers.RepeatedScalarFieldContainer[int]
    slice_counts: _containers.RepeatedScalarFieldContainer[int]
    wait_ms: int
    def __init__(self, request_id: _Optional[bytes] = ..., write_ids: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ..., failed_writes: _Optional[_Iterable[int]] = ..., failed_slices: _Optional[_Iterable[int]] = ..., failed_copies: _Optional[_Iterable[int]] = ..., slice_counts: _Optional[_Iterable[int]] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class PutEndReply(_message.Message):
    __slots__ = ("results", "copies")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedScalarFieldContainer[_types_pb2.Result]
    copies: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, results: _Optional[_Iterable[_Union[_types_pb2.Result, str]]] = ..., copies: _Optional[_Iterable[int]] = ...) -> None: ...

class PutAbortRequest(_message.Message):
    __slots__ = ("request_id", "write_ids")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WRITE_IDS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    write_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, request_id: _Optional[bytes] = ..., write_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class PutAbortReply(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedScalarFieldContainer[_types_pb2.Result]
    def __init__(self, results: _Optional[_Iterable[_Union[_types_pb2.Result, str]]] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("keys", "host_id", "zone")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    keys: _types_pb2.Keys
    host_id: str
    zone: str
    def __init__(self, keys: _Optional[_Union[_types_pb2.Keys, _Mapping]] = ..., host_id: _Optional[str] = ..., zone: _Optional[str] = ...) -> None: ...

class LookupReply(_message.Message):
    __slots__ = ("results", "sizes", "places", "lease_ms", "lease_id")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedScalarFieldContainer[_types_pb2.Result]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    places: _types_pb2.Places
    lease_ms: int
    lease_id: int
    def __init__(self, results: _Optional[_Iterable[_Union[_types_pb2.Result, str]]] = ..., sizes: _Optional[_Iterable[int]] = ..., places: _Optional[_Union[_types_pb2.Places, _Mapping]] = ..., lease_ms: _Optional[int] = ..., lease_id: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("lease_ids",)
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    lease_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lease_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MatchRequest(_message.Message):
    __slots__ = ("keys", "wait_ms", "hold_ms")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    HOLD_MS_FIELD_NUMBER: _ClassVar[int]
    keys: _types_pb2.Keys
    wait_ms: int
    hold_ms: int
    def __init__(self, keys: _Optional[_Union[_types_pb2.Keys, _Mapping]] = ..., wait_ms: _Optional[int] = ..., hold_ms: _Optional[int] = ...) -> None: ...

class MatchReply(_message.Message):
    __slots__ = ("matched",)
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    matched: int
    def __init__(self, matched: _Optional[int] = ...) -> None: ...

class ExistsRequest(_message.Message):
    __slots__ = ("keys", "sizes")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    keys: _types_pb2.Keys
    sizes: bool
    def __init__(self, keys: _Optional[_Union[_types_pb2.Keys, _Mapping]] = ..., sizes: bool = ...) -> None: ...

class ExistsReply(_message.Message):
    __slots__ = ("exists", "sizes")
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    exists: _containers.RepeatedScalarFieldContainer[bool]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, exists: _Optional[_Iterable[bool]] = ..., sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("request_id", "keys")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    keys: _types_pb2.Keys
    def __init__(self, request_id: _Optional[bytes] = ..., keys: _Optional[_Union[_types_pb2.Keys, _Mapping]] = ...) -> None: ...

class RemoveReply(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedScalarFieldContainer[_types_pb2.Result]
    def __init__(self, results: _Optional[_Iterable[_Union[_types_pb2.Result, str]]] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("keys", "slices", "segment_ids", "offsets", "faults")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    keys: _types_pb2.Keys
    slices: _containers.RepeatedScalarFieldContainer[int]
    segment_ids: _containers.RepeatedScalarFieldContainer[int]
    offsets: _containers.RepeatedScalarFieldContainer[int]
    faults: _containers.RepeatedScalarFieldContainer[Fault]
    def __init__(self, keys: _Optional[_Union[_types_pb2.Keys, _Mapping]] = ..., slices: _Optional[_Iterable[int]] = ..., segment_ids: _Optional[_Iterable[int]] = ..., offsets: _Optional[_Iterable[int]] = ..., faults: _Optional[_Iterable[_Union[Fault, str]]] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("dropped",)
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    dropped: int
    def __init__(self, dropped: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("prefix", "after", "limit")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    prefix: bytes
    after: bytes
    limit: int
    def __init__(self, prefix: _Optional[bytes] = ..., after: _Optional[bytes] = ..., limit: _Optional[int] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("keys", "sizes", "copies", "more")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    keys: _types_pb2.Keys
    sizes: _containers.RepeatedScalarFieldContainer[int]
    copies: _containers.RepeatedScalarFieldContainer[int]
    more: bool
    def __init__(self, keys: _Optional[_Union[_types_pb2.Keys, _Mapping]] = ..., sizes: _Optional[_Iterable[int]] = ..., copies: _Optional[_Iterable[int]] = ..., more: bool = ...) -> None: ...

class StatRequest(_message.Message):
    __slots__ = ("keys", "lease")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    keys: _types_pb2.Keys
    lease: bool
    def __init__(self, keys: _Optional[_Union[_types_pb2.Keys, _Mapping]] = ..., lease: bool = ...) -> None: ...

class StatReply(_message.Message):
    __slots__ = ("results", "sizes", "places", "silent", "wanted", "pins", "ttls_ms", "leases_ms", "write_ids", "depths", "lease_ms", "lease_id")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    TTLS_MS_FIELD_NUMBER: _ClassVar[int]
    LEASES_MS_FIELD_NUMBER: _ClassVar[int]
    WRITE_IDS_FIELD_NUMBER: _ClassVar[int]
    DEPTHS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedScalarFieldContainer[_types_pb2.Result]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    places: _types_pb2.Places
    silent: _containers.RepeatedScalarFieldContainer[int]
    wanted: _containers.RepeatedScalarFieldContainer[int]
    pins: _containers.RepeatedScalarFieldContainer[int]
    ttls_ms: _containers.RepeatedScalarFieldContainer[int]
    leases_ms: _containers.RepeatedScalarFieldContainer[int]
    write_ids: _containers.RepeatedScalarFieldContainer[int]
    depths: _containers.RepeatedScalarFieldContainer[int]
    lease_ms: int
    lease_id: int
    def __init__(self, results: _Optional[_Iterable[_Union[_types_pb2.Result, str]]] = ..., sizes: _Optional[_Iterable[int]] = ..., places: _Optional[_Union[_types_pb2.Places, _Mapping]] = ..., silent: _Optional[_Iterable[int]] = ..., wanted: _Optional[_Iterable[int]] = ..., pins: _Optional[_Iterable[int]] = ..., ttls_ms: _Optional[_Iterable[int]] = ..., leases_ms: _Optional[_Iterable[int]] = ..., write_ids: _Optional[_Iterable[int]] = ..., depths: _Optional[_Iterable[int]] = ..., lease_ms: _Optional[int] = ..., lease_id: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("brief",)
    BRIEF_FIELD_NUMBER: _ClassVar[int]
    brief: bool
    def __init__(self, brief: bool = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("version", "epoch", "objects", "object_bytes", "writes_in_flight", "slice_bytes", "nodes", "rested_ms", "rest_left_ms", "attached", "wall_ms", "up_ms", "counts", "objects_below_target", "copies_missing", "repairs_pending", "waiting_puts")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    OBJECT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    SLICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    RESTED_MS_FIELD_NUMBER: _ClassVar[int]
    REST_LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    UP_MS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_BELOW_TARGET_FIELD_NUMBER: _ClassVar[int]
    COPIES_MISSING_FIELD_NUMBER: _ClassVar[int]
    REPAIRS_PENDING_FIELD_NUMBER: _ClassVar[int]
    WAITING_PUTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    epoch: int
    objects: int
    object_bytes: int
    writes_in_flight: int
    slice_bytes: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    rested_ms: int
    rest_left_ms: int
    attached: int
    wall_ms: int
    up_ms: int
    counts: Counts
    objects_below_target: int
    copies_missing: int
    repairs_pending: int
    waiting_puts: int
    def __init__(self, version: _Optional[str] = ..., epoch: _Optional[int] = ..., objects: _Optional[int] = ..., object_bytes: _Optional[int] = ..., writes_in_flight: _Optional[int] = ..., slice_bytes: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., rested_ms: _Optional[int] = ..., rest_left_ms: _Optional[int] = ..., attached: _Optional[int] = ..., wall_ms: _Optional[int] = ..., up_ms: _Optional[int] = ..., counts: _Optional[_Union[Counts, _Mapping]] = ..., objects_below_target: _Optional[int] = ..., copies_missing: _Optional[int] = ..., repairs_pending: _Optional[int] = ..., waiting_puts: _Optional[int] = ...) -> None: ...

class Counts(_message.Message):
    __slots__ = ("put_objects", "put_bytes", "lookup_keys", "lookup_hit_keys", "lookup_hit_bytes", "match_keys", "match_hit_keys", "match_hit_bytes", "evicted_objects", "evicted_bytes", "expired_objects", "lost_objects", "corrupt_copies", "repaired_copies", "failed_repairs")
    PUT_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    PUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_KEYS_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_HIT_KEYS_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_HIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MATCH_KEYS_FIELD_NUMBER: _ClassVar[int]
    MATCH_HIT_KEYS_FIELD_NUMBER: _ClassVar[int]
    MATCH_HIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTED_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    EVICTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    LOST_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_COPIES_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_COPIES_FIELD_NUMBER: _ClassVar[int]
    FAILED_REPAIRS_FIELD_NUMBER: _ClassVar[int]
    put_objects: int
    put_bytes: int
    lookup_keys: int
    lookup_hit_keys: int
    lookup_hit_bytes: int
    match_keys: int
    match_hit_keys: int
    match_hit_bytes: int
    evicted_objects: int
    evicted_bytes: int
    expired_objects: int
    lost_objects: int
    corrupt_copies: int
    repaired_copies: int
    failed_repairs: int
    def __init__(self, put_objects: _Optional[int] = ..., put_bytes: _Optional[int] = ..., lookup_keys: _Optional[int] = ..., lookup_hit_keys: _Optional[int] = ..., lookup_hit_bytes: _Optional[int] = ..., match_keys: _Optional[int] = ..., match_hit_keys: _Optional[int] = ..., match_hit_bytes: _Optional[int] = ..., evicted_objects: _Optional[int] = ..., evicted_bytes: _Optional[int] = ..., expired_objects: _Optional[int] = ..., lost_objects: _Optional[int] = ..., corrupt_copies: _Optional[int] = ..., repaired_copies: _Optional[int] = ..., failed_repairs: _Optional[int] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node_id", "host_id", "state", "incarnation", "segments", "zone", "draining", "drain_objects", "drain_without_room", "version", "host_name", "address")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    DRAIN_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_WITHOUT_ROOM_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HOST_NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    host_id: str
    state: str
    incarnation: int
    segments: _containers.RepeatedCompositeFieldContainer[SegmentStatus]
    zone: str
    draining: bool
    drain_objects: int
    drain_without_room: int
    version: str
    host_name: str
    address: str
    def __init__(self, node_id: _Optional[str] = ..., host_id: _Optional[str] = ..., state: _Optional[str] = ..., incarnation: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[SegmentStatus, _Mapping]]] = ..., zone: _Optional[str] = ..., draining: bool = ..., drain_objects: _Optional[int] = ..., drain_without_room: _Optional[int] = ..., version: _Optional[str] = ..., host_name: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class SegmentStatus(_message.Message):
    __slots__ = ("segment", "live_bytes", "reserved_bytes", "quarantined_bytes", "free_bytes", "largest_free_bytes", "copies", "pinned_bytes")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    segment: _types_pb2.Segment
    live_bytes: int
    reserved_bytes: int
    quarantined_bytes: int
    free_bytes: int
    largest_free_bytes: int
    copies: int
    pinned_bytes: int
    def __init__(self, segment: _Optional[_Union[_types_pb2.Segment, _Mapping]] = ..., live_bytes: _Optional[int] = ..., reserved_bytes: _Optional[int] = ..., quarantined_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., largest_free_bytes: _Optional[int] = ..., copies: _Optional[int] = ..., pinned_bytes: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("node_id", "cancel")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    cancel: bool
    def __init__(self, node_id: _Optional[str] = ..., cancel: bool = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
