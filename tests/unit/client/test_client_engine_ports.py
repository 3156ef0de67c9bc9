"""The transfer engine's ports: real engines, each in a process of its own, since the range is a process's."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from larder.engine_ports import EACH

PROGRAM = """
import sys, larder, psutil
from larder.transports import mooncake

def listening():
    return sorted(each.laddr.port for each in psutil.Process().net_connections("tcp") if each.status == "LISTEN")

def connect(ports):
    try:
        return larder.connect("127.0.0.1:1", engine_ports=ports)
    except larder.LarderError as error:
        print(type(error).__name__, error)

def borrow(number):
    try:
        return mooncake.borrow("tcp", "127.0.0.1:1", (bytes([number]), 0))
    except larder.LarderError as error:
        print(type(error).__name__, error)
"""


def run(program: str, *args: str) -> str:
    argv = [sys.executable, "-c", PROGRAM + program, *args]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def ports() -> Iterator[str]:
    """A range of which exactly four ports are free, until the test's end."""
    with ExitStack() as stack:
        for first in range(19000, 19900, 10):
            sockets = []
            for port in range(first, first + 10):
                probe = stack.enter_context(socket.socket())
                try:
                    probe.bind(("", port))
                    probe.listen()
                except OSError:
                    break
                sockets.append(probe)
            if len(sockets) == 10:
                for free in sockets[3:7]:
                    free.close()
                yield f"{first}-{first + 9}"
                return
        raise AssertionError("no ten free ports")


def test_every_port_that_the_engine_opens_is_of_the_range_also_where_most_of_it_is_taken(ports: str) -> None:
    first = int(ports.split("-")[0])
    said = run("store = connect(sys.argv[1]); engines = [borrow(1), borrow(2)]; print(listening())", ports)
    assert said == f"{[first + 3, first + 4, first + 5, first + 6]}\n"


def test_where_the_range_is_used_up_an_error_says_so_and_what_was_replaced_makes_room(ports: str) -> None:
    said = run(
        "store = connect(sys.argv[1]); engines = [borrow(1), borrow(2)]; borrow(3); "
        "mooncake.replace(engines.pop()); engines.append(borrow(3)); print(len(listening()))",
        ports,
    )
    refused, left = said.splitlines()
    assert refused.startswith(f"PortsTaken of the ports {ports} fewer than {EACH} are free"), refused
    assert "widen engine_ports" in refused, refused
    assert left == "4"


def test_a_process_has_one_range(ports: str) -> None:
    said = run("a, b = connect(sys.argv[1]), connect(sys.argv[1]); c = connect('18000-18009')", ports)
    assert said.startswith(
        f"InvalidArgument engine_ports is 18000-18009: this process's transfer engine uses the ports {ports}"
    )
    said = run("import mooncake.engine; connect(sys.argv[1])", ports)
    assert "has loaded the transfer engine already" in said
