"""The entry point: light, and no reason for an engine not to start."""

import logging
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from larder.vllm import plugin

ROOT = Path(__file__).resolve().parents[3]


def test_it_is_declared_under_the_group_that_vllm_loads() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"larder": "larder.vllm.plugin:register"}


def test_it_imports_neither_torch_nor_grpc_nor_vllm() -> None:
    code = (
        "import sys; from larder.vllm import plugin; "
        "print([name for name in ('torch', 'vllm', 'larder.vllm.connector', 'mooncake') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_vllm_that_is_not_there_or_quite_another_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.distributed.kv_transfer.kv_connector.factory", None)
    with caplog.at_level(logging.WARNING, "vllm.larder"):
        plugin.register()
    assert "LarderConnector could not be registered with this vLLM, other connectors work" in caplog.text
