"""The transfer engine's ports: real engines, each in a process of its own, since the range is a process's."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from larder.engine_ports import EACH

from tests.free_ports import free_ports

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
    """A range of ten ports of which four are free."""
    with free_ports(4, taken=3) as ports:
        yield ports


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
    said = run("a, b = connect(sys.argv[1]), connect(sys.argv[1]); c = connect('30000-30009')", ports)
    assert said.startswith(
        f"InvalidArgument engine_ports is 30000-30009: this process's transfer engine uses the ports {ports}"
    )
    said = run("import mooncake.engine; connect(sys.argv[1])", ports)
    assert "has loaded the transfer engine already" in said
