from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PIN_NONE: _ClassVar[Pin]
    PIN_SOFT: _ClassVar[Pin]
    PIN_HARD: _ClassVar[Pin]

class Result(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESULT_UNSPECIFIED: _ClassVar[Result]
    RESULT_OK: _ClassVar[Result]
    RESULT_EXISTS: _ClassVar[Result]
    RESULT_MISS: _ClassVar[Result]
    RESULT_NO_SPACE: _ClassVar[Result]
    RESULT_TOO_LARGE: _ClassVar[Result]
    RESULT_UNKNOWN_WRITE: _ClassVar[Result]
    RESULT_LOST: _ClassVar[Result]
    RESULT_PIN_REFUSED: _ClassVar[Result]
PIN_NONE: Pin
PIN_SOFT: Pin
PIN_HARD: Pin
RESULT_UNSPECIFIED: Result
RESULT_OK: Result
RESULT_EXISTS: Result
RESULT_MISS: Result
RESULT_NO_SPACE: Result
RESULT_TOO_LARGE: Result
RESULT_UNKNOWN_WRITE: Result
RESULT_LOST: Result
RESULT_PIN_REFUSED: Result

class Keys(_message.Message):
    __slots__ = ("data", "width", "lengths")
    DATA_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    width: int
    lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, data: _Optional[bytes] = ..., width: _Optional[int] = ..., lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("id", "node_id", "host_id", "capacity_bytes", "shm_path", "shm_token", "shm_data_offset", "engine_endpoint", "engine_base", "engine_protocol", "zone")
    ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHM_PATH_FIELD_NUMBER: _ClassVar[int]
    SHM_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SHM_DATA_OFFSET_FIELD_NUMBER: _ClassVar[int]
    ENGINE_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_BASE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    id: int
    node_id: str
    host_id: str
    capacity_bytes: int
    shm_path: str
    shm_token: bytes
    shm_data_offset: int
    engine_endpoint: str
    engine_base: int
    engine_protocol: str
    zone: str
    def __init__(self, id: _Optional[int] = ..., node_id: _Optional[str] = ..., host_id: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., shm_path: _Optional[str] = ..., shm_token: _Optional[bytes] = ..., shm_data_offset: _Optional[int] = ..., engine_endpoint: _Optional[str] = ..., engine_base: _Optional[int] = ..., engine_protocol: _Optional[str] = ..., zone: _Optional[str] = ...) -> None: ...

class Places(_message.Message):
    __slots__ = ("segments", "slice_counts", "slice_lengths", "checksums", "copy_counts", "copy_segments", "copy_offsets")
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SLICE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    SLICE_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    COPY_COUNTS_FIELD_NUMBER: _ClassVar[int]
    COPY_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    COPY_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    slice_counts: _containers.RepeatedScalarFieldContainer[int]
    slice_lengths: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    copy_counts: _containers.RepeatedScalarFieldContainer[int]
    copy_segments: _containers.RepeatedScalarFieldContainer[int]
    copy_offsets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., slice_counts: _Optional[_Iterable[int]] = ..., slice_lengths: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ..., copy_counts: _Optional[_Iterable[int]] = ..., copy_segments: _Optional[_Iterable[int]] = ..., copy_offsets: _Optional[_Iterable[int]] = ...) -> None: ...
