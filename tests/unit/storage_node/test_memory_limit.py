"""What control groups leave a storage node, read from files as the kernel writes them."""

from pathlib import Path

import pytest

from services.storage_node import pool_dir
from services.storage_node.memory_limit import Limit, narrowest
from services.storage_node.pool import Pool
from services.storage_node.pool_dir import PoolError


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def own(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "cgroup"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_the_second_version_in_a_container_that_is_its_own_root(tmp_path: Path) -> None:
    write(tmp_path / "groups", memory__max="1000", memory__current="300", memory__stat="anon 1\ninactive_file 50")
    assert narrowest(own(tmp_path, "0::/"), tmp_path / "groups") == Limit(1000, 750)


def test_the_narrowest_of_nested_groups_counts(tmp_path: Path) -> None:
    write(tmp_path / "groups/unit", memory__max="1000", memory__current="900", memory__stat="inactive_file 0")
    write(tmp_path / "groups/unit/part", memory__max="max", memory__current="100", memory__stat="inactive_file 0")
    assert narrowest(own(tmp_path, "0::/unit/part"), tmp_path / "groups") == Limit(1000, 100)


def test_the_first_version_where_the_path_is_the_hosts(tmp_path: Path) -> None:
    write(
        tmp_path / "groups/memory",
        memory__limit_in_bytes="500",
        memory__usage_in_bytes="600",
        memory__stat="total_inactive_file 0",
    )
    lines = ("4:cpu,cpuacct:/docker/x", "3:memory:/docker/x", "0::/docker/x")
    assert narrowest(own(tmp_path, *lines), tmp_path / "groups") == Limit(500, 0)


def test_no_limit_and_no_groups_are_none(tmp_path: Path) -> None:
    write(tmp_path / "groups", memory__max="max", memory__current="1", memory__stat="inactive_file 0")
    assert narrowest(own(tmp_path, "0::/"), tmp_path / "groups") is None
    assert narrowest(tmp_path / "nowhere", tmp_path / "groups") is None


@pytest.mark.parametrize("free", [0, 2 << 20])
def test_a_pool_that_its_container_may_not_hold_is_refused_by_name(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_dir, "is_tmpfs", lambda fd: True)
    monkeypatch.setattr(pool_dir, "narrowest", lambda: Limit(1 << 20, free))
    if free:
        Pool(tmp_path, "n1", 1 << 20, wall_clock_ns=1).close()
        return
    with pytest.raises(PoolError, match="of the 1048576 bytes of memory that this container may use, 0 are free"):
        Pool(tmp_path, "n1", 1 << 20, wall_clock_ns=1)
    assert not list(tmp_path.iterdir())
