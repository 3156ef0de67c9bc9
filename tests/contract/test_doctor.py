"""`larder doctor` finds planted faults, and what it prints mends them: in namespaces, a program of its own."""

from pathlib import Path

import pytest

from tests.apart import run_apart


@pytest.mark.timeout(420)
def test_doctor_finds_planted_faults_and_its_remedies_work(tmp_path: Path) -> None:
    run_apart("tests.contract.doctor_faults", tmp_path, 400)
