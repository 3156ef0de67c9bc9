"""Hosts that reach the master and not each other: errors name the address and the cause, and repairs back off."""

from pathlib import Path

import pytest

from tests.apart import run_apart


@pytest.mark.timeout(180)
def test_what_a_firewall_keeps_apart_is_told_apart_from_what_is_lost(tmp_path: Path) -> None:
    run_apart("tests.e2e.firewall", tmp_path, 150)
