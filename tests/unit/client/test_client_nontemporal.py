"""The copy past the caches: it was built, moves every byte and no other, and where it cannot be, memmove copies."""

import ctypes
import platform
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from larder import nontemporal

SOURCE = nontemporal.LIBRARY.with_name("nontemporal.c")
MARGIN = 128
LENGTHS = (0, 1, 16_383, 16_384, 16_385, 16_640, 65_536, 65_537, 100_003, 1 << 20)


def _address(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("copy", [nontemporal.copy, ctypes.memmove], ids=["built", "memmove"])
def test_moves_every_byte_and_no_other(copy: nontemporal.Copy, length: int) -> None:
    data = bytearray(random.Random(length).randbytes(length + 2 * MARGIN))
    for to, start in [(0, 0), (1, 0), (0, 1), (31, 17), (63, 64), (64, 63)]:
        target = bytearray(b"\xa5" * (length + 2 * MARGIN))
        copy(_address(target) + to, _address(data) + start, length)
        assert target[to : to + length] == data[start : start + length]
        assert target[:to] + target[to + length :] == b"\xa5" * (2 * MARGIN)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or "avx2" not in Path("/proc/cpuinfo").read_text().split(),
    reason="this processor copies by memmove",
)
def test_was_built() -> None:
    assert nontemporal.LIBRARY.exists(), "no C compiler was found when the package was installed: run make setup"
    assert nontemporal.copy is not ctypes.memmove


def test_without_the_library_memmove_copies(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    assert nontemporal.load(tmp_path / "absent.so") is ctypes.memmove
    assert nontemporal.load(broken) is ctypes.memmove


def test_on_a_processor_that_cannot_memmove_copies(tmp_path: Path) -> None:
    library, compiler = tmp_path / "other.so", shutil.which("cc")
    assert compiler is not None
    lacking = "-D__builtin_cpu_supports(feature)=0"
    subprocess.run([compiler, lacking, "-shared", "-fPIC", "-o", library, SOURCE], check=True, timeout=60)
    assert nontemporal.load(library) is ctypes.memmove
