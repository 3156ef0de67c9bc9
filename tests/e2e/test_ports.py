"""The ports table (docs/ports.md) is whole: with a firewall that lets only its ports through, and behind a gateway.

In network namespaces, in a process of its own (`tests.e2e.ports`).
"""

from pathlib import Path

import pytest

from tests.apart import run_apart


@pytest.mark.timeout(180)
@pytest.mark.parametrize("between", ["firewall", "gateway"])
def test_the_ports_of_the_table_are_enough(tmp_path: Path, between: str) -> None:
    run_apart("tests.e2e.ports", tmp_path, 150, between)
