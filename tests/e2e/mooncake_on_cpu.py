"""vLLM's own MooncakeConnector, made to run without an accelerator: as shipped it asks for one's index."""

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.mooncake.mooncake_connector import (
    MooncakeConnector as MooncakeConnector,
)

torch.accelerator.current_device_index = lambda: 0  # type: ignore[assignment]
if hasattr(torch.cpu, "_init_amx"):
    torch.cpu._init_amx()  # an engine whose first step computes one token has run nothing yet that did
