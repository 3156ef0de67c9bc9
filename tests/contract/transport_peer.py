"""A pool by itself, for the transports' contract: a file on tmpfs, and a real transfer engine that serves it.

    python transport_peer.py FILE CAPACITY_BYTES

Says in one line of JSON how to reach it, and lives until its standard input ends.
"""

import ctypes
import json
import mmap
import os
import secrets
import sys
from pathlib import Path

os.environ.setdefault("MC_TCP_ENABLE_CONNECTION_POOL", "1")
os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
from larder.pool_file import HEADER_BYTES, PoolHeader
from mooncake.engine import TransferEngine

path, capacity_bytes = Path(sys.argv[1]), int(sys.argv[2])
token = secrets.token_bytes(16)
temporary = path.with_suffix(".new")
temporary.write_bytes(PoolHeader(capacity_bytes, token, incarnation=1).pack() + bytes(capacity_bytes))
temporary.rename(path)
with path.open("r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + HEADER_BYTES
engine = TransferEngine()
if engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") or engine.register_memory(base, capacity_bytes):
    sys.exit("the engine does not start")
facts = {"token": token.hex(), "endpoint": f"127.0.0.1:{engine.get_rpc_port()}", "base": base}
print("peer ready: " + json.dumps(facts), flush=True)
sys.stdin.read()
