"""Every gRPC channel that Larder opens, by clients, tools and storage nodes: options and credentials in one place."""

from typing import Final

import grpc.aio

_OPTIONS: Final = [
    ("grpc.enable_http_proxy", 0),  # what http_proxy names is for the outside world, and knows no master
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel does not inherit an old one's back-off
    ("grpc.keepalive_time_ms", 1_000),  # with the time-out: a silent peer is given up after 3 s
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),  # gRPC 1.85 heeds this one only, and defaults to 60 s
    ("grpc.http2.max_pings_without_data", 0),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """To HOST:PORT; nothing is sent before its first call. Belongs to the running event loop; close it, or use `async
    with`."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)
