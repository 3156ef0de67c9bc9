from larder.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeMessage(_message.Message):
    __slots__ = ("hello", "inventory", "inventory_end", "heartbeat", "ack", "leave")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_END_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    inventory: Copies
    inventory_end: InventoryEnd
    heartbeat: Heartbeat
    ack: Ack
    leave: Leave
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., inventory: _Optional[_Union[Copies, _Mapping]] = ..., inventory_end: _Optional[_Union[InventoryEnd, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "node_id", "incarnation", "epoch", "host_id", "host_name", "address", "draining", "zone", "segments")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    node_id: str
    incarnation: int
    epoch: int
    host_id: str
    host_name: str
    address: str
    draining: bool
    zone: str
    segments: _containers.RepeatedCompositeFieldContainer[_types_pb2.Segment]
    def __init__(self, version: _Optional[str] = ..., node_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., epoch: _Optional[int] = ..., host_id: _Optional[str] = ..., host_name: _Optional[str] = ..., address: _Optional[str] = ..., draining: bool = ..., zone: _Optional[str] = ..., segments: _Optional[_Iterable[_Union[_types_pb2.Segment, _Mapping]]] = ...) -> None: ...

class Copies(_message.Message):
    __slots__ = ("keys", "write_ids", "object_sizes", "slice_counts", "slices", "segment_ids", "offsets", "lengths", "checksums", "depths", "wanted", "ttls_ms", "pins")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    WRITE_IDS_FIELD_NUMBER: _ClassVar[int]
    OBJECT_SIZES_FIELD_NUMBER: _ClassVar[int]
    SLICE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    DEPTHS_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    TTLS_MS_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    keys: _types_pb2.Keys
    write_ids: _containers.RepeatedScalarFieldContainer[int]
    object_sizes: _containers.RepeatedScalarFieldContainer[int]
    slice_counts: _containers.RepeatedScalarFieldContainer[int]
    slices: _containers.RepeatedScalarFieldContainer[int]
    segment_ids: _containers.RepeatedScalarFieldContainer[int]
    offsets: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    depths: _containers.RepeatedScalarFieldContainer[int]
    wanted: _containers.RepeatedScalarFieldContainer[int]
    ttls_ms: _containers.RepeatedScalarFieldContainer[int]
    pins: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, keys: _Optional[_Union[_types_pb2.Keys, _Mapping]] = ..., write_ids: _Optional[_Iterable[int]] = ..., object_sizes: _Optional[_Iterable[int]] = ..., slice_counts: _Optional[_Iterable[int]] = ..., slices: _Optional[_Iterable[int]] = ..., segment_ids: _Optional[_Iterable[int]] = ..., offsets: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ..., depths: _Optional[_Iterable[int]] = ..., wanted: _Optional[_Iterable[int]] = ..., ttls_ms: _Optional[_Iterable[int]] = ..., pins: _Optional[_Iterable[int]] = ...) -> None: ...

class InventoryEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ack(_message.Message):
    __slots__ = ("epoch", "command_ids", "failed_command_ids", "corrupt_command_ids", "failed_reasons")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMMAND_IDS_FIELD_NUMBER: _ClassVar[int]
    FAILED_COMMAND_IDS_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_COMMAND_IDS_FIELD_NUMBER: _ClassVar[int]
    FAILED_REASONS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    command_ids: _containers.RepeatedScalarFieldContainer[int]
    failed_command_ids: _containers.RepeatedScalarFieldContainer[int]
    corrupt_command_ids: _containers.RepeatedScalarFieldContainer[int]
    failed_reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epoch: _Optional[int] = ..., command_ids: _Optional[_Iterable[int]] = ..., failed_command_ids: _Optional[_Iterable[int]] = ..., corrupt_command_ids: _Optional[_Iterable[int]] = ..., failed_reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MasterMessage(_message.Message):
    __slots__ = ("epoch", "welcome", "record", "forget", "refuse", "farewell", "fetch", "ping", "drain")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    REFUSE_FIELD_NUMBER: _ClassVar[int]
    FAREWELL_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    welcome: Welcome
    record: Record
    forget: Forget
    refuse: Refuse
    farewell: Farewell
    fetch: Fetch
    ping: Ping
    drain: Drain
    def __init__(self, epoch: _Optional[int] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., record: _Optional[_Union[Record, _Mapping]] = ..., forget: _Optional[_Union[Forget, _Mapping]] = ..., refuse: _Optional[_Union[Refuse, _Mapping]] = ..., farewell: _Optional[_Union[Farewell, _Mapping]] = ..., fetch: _Optional[_Union[Fetch, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("segment_ids", "heartbeat_ms")
    SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    segment_ids: _containers.RepeatedScalarFieldContainer[int]
    heartbeat_ms: int
    def __init__(self, segment_ids: _Optional[_Iterable[int]] = ..., heartbeat_ms: _Optional[int] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("command_id", "copies")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    copies: Copies
    def __init__(self, command_id: _Optional[int] = ..., copies: _Optional[_Union[Copies, _Mapping]] = ...) -> None: ...

class Forget(_message.Message):
    __slots__ = ("command_id", "segment_ids", "offsets", "write_ids", "lengths")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    WRITE_IDS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    segment_ids: _containers.RepeatedScalarFieldContainer[int]
    offsets: _containers.RepeatedScalarFieldContainer[int]
    write_ids: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, command_id: _Optional[int] = ..., segment_ids: _Optional[_Iterable[int]] = ..., offsets: _Optional[_Iterable[int]] = ..., write_ids: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("command_id", "copies", "source", "source_offset", "timeout_ms")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    copies: Copies
    source: _types_pb2.Segment
    source_offset: int
    timeout_ms: int
    def __init__(self, command_id: _Optional[int] = ..., copies: _Optional[_Union[Copies, _Mapping]] = ..., source: _Optional[_Union[_types_pb2.Segment, _Mapping]] = ..., source_offset: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class Refuse(_message.Message):
    __slots__ = ("reason", "id_taken")
    REASON_FIELD_NUMBER: _ClassVar[int]
    ID_TAKEN_FIELD_NUMBER: _ClassVar[int]
    reason: str
    id_taken: bool
    def __init__(self, reason: _Optional[str] = ..., id_taken: bool = ...) -> None: ...

class Farewell(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ping(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Drain(_message.Message):
    __slots__ = ("draining",)
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    draining: bool
    def __init__(self, draining: bool = ...) -> None: ...
