"""Bad input to real processes: each a clear typed error, nothing lost, no process down.

Commands are run as a user runs them; calls go through the Python client, and past it by raw gRPC where the client would
refuse first. After every test the cluster's processes still run and an object put before all of it still reads back.
"""

import contextlib
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import larder
import pytest
from larder.v1 import master_pb2, master_pb2_grpc, types_pb2
from larder.wire import pack_keys

from demo.cluster import Cluster, free_port

POOL_BYTES = 64_000_000
BATCH_MAX = 16_384
WITNESS = ("witness", b"still here" * 1000)


@pytest.fixture(scope="module")
def store(store_cluster: Cluster) -> Iterator[larder.Store]:
    with larder.connect(store_cluster.master) as store:
        store.put(*WITNESS)
        yield store


@pytest.fixture(autouse=True)
def _nothing_lost(store_cluster: Cluster, store: larder.Store) -> Iterator[None]:
    yield
    assert all(process.running() for process in store_cluster.processes.values())
    assert store.get(WITNESS[0]) == WITNESS[1]


@pytest.fixture(scope="module")
def master(store_cluster: Cluster) -> Iterator[master_pb2_grpc.MasterStub]:
    with grpc.insecure_channel(store_cluster.master) as channel:
        yield master_pb2_grpc.MasterStub(channel)


def command(*argv: str) -> tuple[int, str]:
    """Exit status and stderr of a command that is expected to refuse at once."""
    program = Path(sys.prefix) / "bin" / argv[0]
    result = subprocess.run([program, *argv[1:]], capture_output=True, text=True, timeout=30, check=False)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


def put_start(*keys: bytes, sizes: list[int] | None = None) -> master_pb2.PutStartRequest:
    return master_pb2.PutStartRequest(
        request_id=uuid.uuid4().bytes, keys=pack_keys(keys), sizes=sizes or [8] * len(keys), copies=1
    )


def refusal(call: grpc.UnaryUnaryMultiCallable, request: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=5)
    return caught.value


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["master", "storage-node", "proxy"])
def test_unknown_flag(program: str) -> None:
    status, said = command(program, "--metrics-prot", "0")
    assert status == 2
    assert "--metrics-prot" in said


def test_unknown_flag_names_the_near_one() -> None:
    assert "--dram" in command("storage-node", "--drams", "2GB")[1].replace("--drams", "")


@pytest.mark.parametrize("program", ["master", "storage-node", "proxy"])
def test_unknown_key_in_the_file(program: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("prot: 1\n")
    status, said = command(program, "--config", str(file))
    assert status == 2
    assert "prot" in said
    assert str(file) in said


def test_bad_size() -> None:
    status, said = command("storage-node", "--master", "127.0.0.1:1", "--dram", "2XB")
    assert status == 2
    assert "--dram" in said
    assert "2XB" in said


def test_slices_without_a_unit() -> None:
    status, said = command("master", "--slice-bytes", "16")
    assert status == 2
    assert "--slice-bytes 16: expected at least 65536 bytes" in said
    assert "as in 16GB?" in said


def test_port_taken(store_cluster: Cluster, tmp_path: Path) -> None:
    port = store_cluster.master.rpartition(":")[2]
    for argv in (
        ["master", "--port", port, "--metrics-port", "0"],
        ["master", "--port", "0", "--metrics-port", port],
        ["storage-node", "--master", store_cluster.master, "--node-id", "third", "--dram", "1MB",
         "--pool-dir", str(tmp_path), "--metrics-port", port],
        ["proxy", "--port", port, "--decode", "127.0.0.1:1"],
    ):  # fmt: skip
        status, said = command(*argv)
        assert status == 1, argv
        assert port in said, argv
        assert "--metrics-port" in said or "--port" in said, argv


def test_node_id_taken(store_cluster: Cluster) -> None:
    """Two nodes of one name would each think the pool theirs."""
    status, said = command(
        "storage-node", "--master", store_cluster.master, "--node-id", "node-1", "--dram", "1MB",
        "--pool-dir", str(store_cluster.pool_dir), "--metrics-port", "0",
    )  # fmt: skip
    assert status == 1
    assert "larder-node-1.pool" in said


# -- the wire ---------------------------------------------------------------------------------------------------------


def test_garbage_on_the_grpc_port(store_cluster: Cluster, master: master_pb2_grpc.MasterStub) -> None:
    host, _, port = store_cluster.master.rpartition(":")
    for garbage in (b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64):
        with socket.create_connection((host, int(port)), timeout=5) as connection, contextlib.suppress(OSError):
            connection.sendall(garbage)  # the server may hang up before all of it is sent
            connection.recv(4096)
    assert len(master.Status(master_pb2.StatusRequest(), timeout=5).nodes) == 2


def test_garbage_as_a_request(store_cluster: Cluster) -> None:
    with grpc.insecure_channel(store_cluster.master) as channel:
        call = channel.unary_unary("/larder.v1.Master/Lookup", request_serializer=lambda data: data)
        assert "parsing" in (refusal(call, b"\xff" * 100).details() or "")  # gRPC's own answer, before any servicer


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (put_start(b"k" * 1025), "1024"),
        (put_start(b""), "key"),
        (put_start(b"key", sizes=[0]), "0 bytes"),
        (put_start(b"key", b"kez", sizes=[8]), "size"),
        (master_pb2.PutStartRequest(keys=pack_keys([b"key"]), sizes=[8]), "request_id"),
    ],
    ids=["long key", "empty key", "zero size", "a size missing", "no request id"],
)
def test_bad_put_start(master: master_pb2_grpc.MasterStub, request_: master_pb2.PutStartRequest, said: str) -> None:
    error = refusal(master.PutStart, request_)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in (error.details() or "")


def test_batch_over_the_limit(master: master_pb2_grpc.MasterStub) -> None:
    keys = pack_keys([b"%08d" % number for number in range(BATCH_MAX + 1)])
    for call, request in (
        (master.Lookup, master_pb2.LookupRequest(keys=keys)),
        (master.Match, master_pb2.MatchRequest(keys=keys)),
        (master.Exists, master_pb2.ExistsRequest(keys=keys)),
        (master.PutStart, put_start(*(b"%08d" % number for number in range(BATCH_MAX + 1)))),
    ):
        error = refusal(call, request)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(BATCH_MAX) in (error.details() or "").replace(",", "")


def test_object_larger_than_all_pools(master: master_pb2_grpc.MasterStub) -> None:
    reply = master.PutStart(put_start(b"huge", sizes=[3 * POOL_BYTES]), timeout=5)
    assert list(reply.results) == [types_pb2.RESULT_TOO_LARGE]


def test_unknown_write_id(master: master_pb2_grpc.MasterStub) -> None:
    end = master_pb2.PutEndRequest(request_id=uuid.uuid4().bytes, write_ids=[12345], slice_counts=[1], checksums=[1])
    assert list(master.PutEnd(end, timeout=5).results) == [types_pb2.RESULT_UNKNOWN_WRITE]
    abort = master_pb2.PutAbortRequest(request_id=uuid.uuid4().bytes, write_ids=[12345])
    assert list(master.PutAbort(abort, timeout=5).results) == [types_pb2.RESULT_UNKNOWN_WRITE]


def test_put_end_twice(master: master_pb2_grpc.MasterStub) -> None:
    started = master.PutStart(put_start(b"twice"), timeout=5)
    end = master_pb2.PutEndRequest(
        request_id=uuid.uuid4().bytes, write_ids=started.write_ids, slice_counts=[1], checksums=[0]
    )
    first = master.PutEnd(end, timeout=5)
    assert list(first.results) == [types_pb2.RESULT_OK]
    assert master.PutEnd(end, timeout=5) == first  # a retry: same answer
    end.request_id = uuid.uuid4().bytes
    assert list(master.PutEnd(end, timeout=5).results) == [types_pb2.RESULT_UNKNOWN_WRITE]
    assert list(master.Exists(master_pb2.ExistsRequest(keys=pack_keys([b"twice"])), timeout=5).exists) == [True]


# -- the client -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "k" * 1025, b"", b"k" * 1025, 7], ids=lambda key: f"{type(key).__name__}")
def test_bad_key(store: larder.Store, key: object) -> None:
    with pytest.raises(larder.InvalidArgument, match="key"):
        store.put(key, b"data")
    with pytest.raises(larder.InvalidArgument, match="key"):
        store.get(key)


def test_empty_object(store: larder.Store) -> None:
    with pytest.raises(larder.InvalidArgument):
        store.put("empty", b"")


def test_object_larger_than_all_pools_by_the_client(store: larder.Store) -> None:
    with pytest.raises(larder.NoSpace, match="huge"):
        store.put("huge", bytes(3 * POOL_BYTES))


def test_wrong_length_buffer(store: larder.Store) -> None:
    with pytest.raises(larder.InvalidArgument, match="witness"):
        store.get_into(WITNESS[0], bytearray(len(WITNESS[1]) - 1))


def test_no_master_is_no_miss() -> None:
    started = time.monotonic()
    with pytest.raises(larder.Unavailable), larder.connect(f"127.0.0.1:{free_port()}", timeout_s=2) as store:
        store.get("key")
    assert time.monotonic() - started < 5
