"""The adapter of the transfer engine, with the real engine over loopback."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.storage_node import engine as engine_module
from services.storage_node.engine import P2P, Engine, EngineError, EngineMissing

AREA_BYTES = 1 << 20


def start(**changes: Any) -> Engine:
    asked = {"host": "127.0.0.1", "unique_name": "n1-7", "metadata_server": P2P, "protocol": "tcp", "device_names": ()}
    return Engine(**{**asked, **changes})


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = start()
    yield engine
    engine.close()


def test_a_client_reads_and_writes_the_registered_area_and_nothing_else(engine: Engine) -> None:
    from mooncake.engine import TransferEngine

    area = ctypes.create_string_buffer(AREA_BYTES)
    beside = ctypes.create_string_buffer(16)
    engine.register(ctypes.addressof(area), AREA_BYTES)
    assert engine.base == ctypes.addressof(area)
    assert engine.endpoint.startswith("127.0.0.1:")
    client = TransferEngine()
    assert client.initialize("127.0.0.1", P2P, "tcp", "") == 0
    source = ctypes.create_string_buffer(b"bytes")
    here = ctypes.addressof(source)
    assert client.transfer_sync_write(engine.endpoint, here, engine.base + AREA_BYTES - 5, 5) == 0
    assert area.raw[-5:] == b"bytes"
    area[7:12] = b"other"  # type: ignore[misc]
    assert client.transfer_sync_read(engine.endpoint, here, engine.base + 7, 5) == 0
    assert source.raw[:5] == b"other"
    assert client.transfer_sync_write(engine.endpoint, here, ctypes.addressof(beside), 5) != 0
    assert beside.raw == bytes(16)
    engine.close()
    assert client.transfer_sync_write(engine.endpoint, here, ctypes.addressof(area), 5) != 0


def test_an_engine_that_cannot_be_imported_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mooncake.engine", None)
    with pytest.raises(EngineMissing, match=r"cannot be imported: .*; install the package mooncake-transfer-engine"):
        start()


def test_the_operators_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MC_TCP_SLICE_SIZE", "65536")
    monkeypatch.delenv("MC_LOG_LEVEL", raising=False)
    engine_module._engine_type()
    assert engine_module.os.environ["MC_TCP_SLICE_SIZE"] == "65536"
    assert engine_module.os.environ["MC_LOG_LEVEL"] == "ERROR"


def test_rdma_without_a_device_is_refused_and_not_served_over_tcp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_module, "_RDMA_DEVICES", tmp_path)
    with pytest.raises(EngineError, match="no RDMA device; use --protocol tcp"):
        start(protocol="rdma")
    (tmp_path / "mlx5_0").mkdir()
    with pytest.raises(EngineError, match="no RDMA device mlx5_7, but mlx5_0"):
        start(protocol="rdma", device_names=("mlx5_7", "mlx5_0"))


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(EngineError, match=r"no\.such\.host\.invalid is not an address of a host"):
        start(host="no.such.host.invalid")


def test_a_metadata_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"does not start as n1-7 with http://127.0.0.1:9/metadata over tcp"):
        start(metadata_server="http://127.0.0.1:9/metadata")
