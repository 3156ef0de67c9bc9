"""What the `master` command can be told."""

from typing import Annotated

from pydantic import Field

from services.common.settings import Host, Port, ServiceSettings, Size, at_least
from services.master.core.tables import Config

_CORE = Config()  # whose defaults are the settings'


class MasterSettings(ServiceSettings):
    """Decides where every object's copies lie. Moves no bytes itself."""

    host: Host = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(50001, description="gRPC port; 0 takes a free one")
    metrics_port: Port = Field(9101, description="HTTP port of /health, /ready and /metrics; 0 takes a free one")
    lease_ms: Annotated[int, Field(ge=100, le=600_000)] = Field(
        _CORE.lease_ms, description="how long a lookup's places hold"
    )
    high_watermark: Annotated[float, Field(gt=0, le=1)] = Field(
        _CORE.high_watermark, description="share of a pool that may be used before eviction begins"
    )
    pin_share: Annotated[float, Field(ge=0, le=1)] = Field(
        _CORE.pin_share, description="share of a pool that may be pinned hard"
    )
    copies: Annotated[int, Field(ge=1, le=16)] = Field(
        _CORE.copies, description="copies of an object, unless the put says otherwise"
    )
    repair_mbps: Annotated[int, Field(ge=1)] = Field(
        _CORE.repair_bytes_per_s * 8 // 1_000_000,
        description="megabits per second, in total, for making lost copies again",
    )
    slice_bytes: Annotated[Size, at_least(65_536, "since an object has at most 65,536 slices")] = Field(
        Size(_CORE.slice_bytes), description="largest contiguous part of an object; larger ones are striped"
    )
