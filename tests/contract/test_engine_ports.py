"""A range of ports for the client's engine, with peers that come back under the name they had: what was replaced makes
room. In a process of its own, since a process has one range; this module is also that program."""

import asyncio
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from larder import engine_ports
from larder.memory import fresh_bytes
from larder.transports import Move
from larder.transports.copiers import Copiers
from larder.transports.engine import EngineTransport

from tests.contract.peers import Peer, soon
from tests.free_ports import free_ports

LIVES = 4  # of the peer; the range has room for two engines


def test_more_engines_are_replaced_than_the_range_has_room_for() -> None:
    with free_ports(4) as ports:
        argv = [sys.executable, "-m", __name__, ports]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "held"


async def meet(transport: EngineTransport, peer: Peer) -> None:
    """The peer under its name, as somebody whom the transport has not met."""
    segment = replace(peer.segment, shm_token=os.urandom(16))
    data, memory = fresh_bytes(5)
    said = await transport.read(segment, [Move(memory, 0, private=True)], soon())
    assert said == [None], said
    assert bytes(data) == b"alive"


async def main() -> None:
    copiers = Copiers()
    transport = EngineTransport(copiers)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        peer = Peer(Path(folder) / "pool")
        engine_ports.use(engine_ports.parse(sys.argv[1]))  # from here on: the peer's are its own
        try:
            peer.poke(0, b"alive")
            for _ in range(LIVES):
                await meet(transport, peer)
        finally:
            peer.close()
    await transport.close()
    copiers.close()
    print("held")


if __name__ == "__main__":
    asyncio.run(main())
