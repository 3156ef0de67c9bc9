"""The other end of the baselines, in its own process: a plain TCP socket and a bare transfer engine.

Started by bench.limits with the size of the engine's memory. Prints how to reach it on one line, and serves until it is
stopped. On the socket a request is (opcode, length): `W` takes so many bytes and answers one byte once it has them, `R`
sends so many. Knows nothing of Larder.
"""

import ctypes
import mmap
import socket
import struct
import sys

REQUEST = struct.Struct("<cQ")
CHUNK_BYTES = 4 * 2**20


def main() -> None:
    from mooncake.engine import (
        TransferEngine,
    )  # reads its settings when it is loaded, so it must not be loaded with this module

    memory = mmap.mmap(-1, int(sys.argv[1]))
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.memset(address, 1, len(memory))
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    assert engine.register_memory(address, len(memory)) == 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        print(f"peer ready: tcp {port} engine 127.0.0.1:{engine.get_rpc_port()} base {address}", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                serve(connection, memoryview(memory)[:CHUNK_BYTES])


def serve(connection: socket.socket, chunk: memoryview) -> None:
    """Until the other side hangs up."""
    while request := connection.recv(REQUEST.size, socket.MSG_WAITALL):
        opcode, left = REQUEST.unpack(request)
        while left:
            part = chunk[: min(left, len(chunk))]
            if opcode == b"W":
                left -= connection.recv_into(part)
            else:
                connection.sendall(part)
                left -= len(part)
        if opcode == b"W":
            connection.sendall(b"!")


if __name__ == "__main__":
    main()
