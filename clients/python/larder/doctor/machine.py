"""This host's limits, as far as Larder runs into them."""

import resource
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from larder.doctor.finding import Finding, Part

PART: Final = Part("this host")
FILES_MIN: Final = 1_024
"""A client has some 100 descriptors, with a pool and four connections per node; a master or node one per client."""
FILES_ADVISED: Final = 65_536
SLOW_CLOCKS: Final = {"hpet", "acpi_pm", "jiffies", "refined-jiffies"}
MARGIN_BYTES: Final = 256 * 2**20
"""What a storage node takes besides its pool."""
UNLIMITED: Final = 1 << 60
"""Kernels write some number near 2**63 where there is no limit."""
_CLOCK: Final = "sys/devices/system/clocksource/clocksource0"
_RDMA: Final = "sys/class/infiniband"


def check_machine(dram: int | None, *, root: Path = Path("/")) -> list[Finding]:
    return [check_files(), check_memlock(root=root), check_clock(root=root), *check_cgroup(dram, root=root)]


def check_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    what = "open files (ulimit -n)"
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        most = FILES_ADVISED if hard == resource.RLIM_INFINITY else min(hard, FILES_ADVISED)
        said = f"{soft} at most: services and engines that are started from here will run out of descriptors"
        if most >= FILES_MIN:
            return PART.bad(what, said, remedy=f"ulimit -n {most}", advice="in the shell that starts them")
        advice = "as root, then in that shell; for containers: --ulimit nofile=65536:65536"
        return PART.bad(what, said, remedy=f"prlimit --pid $$ --nofile={FILES_ADVISED}:{FILES_ADVISED}", advice=advice)
    return PART.ok(what, "no limit" if soft == resource.RLIM_INFINITY else f"{soft}")


def check_memlock(*, root: Path = Path("/")) -> Finding:
    """RDMA pins the memory it registers: pools and engines' buffers. TCP pins nothing."""
    what = "locked memory (ulimit -l)"
    devices = root / _RDMA
    if not devices.is_dir() or not any(devices.iterdir()):
        return PART.skipped(what, "there is no RDMA device, and TCP locks no memory")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY:
        said = f"{soft} bytes at most: pools and buffers cannot be registered for RDMA"
        advice = "in the shell that starts nodes and engines; for containers: --ulimit memlock=-1"
        return PART.bad(what, said, remedy="ulimit -l unlimited", advice=advice)
    return PART.ok(what, "no limit")


def check_clock(*, root: Path = Path("/")) -> Finding:
    """Every lease and deadline asks the clock; a clock that is a system call and a device read costs microseconds."""
    what = "clock source"
    try:
        current = (root / _CLOCK / "current_clocksource").read_text(encoding="ascii").strip()
        available = (root / _CLOCK / "available_clocksource").read_text(encoding="ascii").split()
    except OSError:
        return PART.skipped(what, "the kernel does not say")
    if current in SLOW_CLOCKS:
        better = next((name for name in available if name not in SLOW_CLOCKS), "")
        remedy = f"echo {better} > /{_CLOCK}/current_clocksource" if better else ""
        advice = "as root" if better else "look in the kernel's log why it gave up the processor's own clock"
        return PART.warn(what, f"{current}: to ask the time is slow with it", remedy=remedy, advice=advice)
    return PART.ok(what, current)


def check_cgroup(dram: int | None, *, root: Path = Path("/")) -> list[Finding]:
    """A pool counts as memory of the container whose node filled it."""
    if dram is None:
        return []
    what = "container's memory limit"
    limits = dict(_limits(root))
    if not limits:
        return [PART.ok(what, "none")]
    path, limit = min(limits.items(), key=lambda item: item[1])
    wanted = dram + MARGIN_BYTES
    if limit >= wanted:
        return [PART.ok(what, f"{limit} bytes")]
    said = f"{limit} bytes: a node with a pool of {dram} bytes is killed while it fills it"
    advice = f"on the host, for a container docker update --memory {wanted} --memory-swap {wanted} NAME does it"
    return [PART.bad(what, said, remedy=f"echo {wanted} > {shlex.quote(str(path))}", advice=advice)]


def _limits(root: Path) -> Iterator[tuple[Path, int]]:
    """Every limit on the way from this process's group up, of either version of cgroups."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            yield from _upwards(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
        elif not controllers:
            yield from _upwards(root / "sys/fs/cgroup", path, "memory.max")


def _upwards(mount: Path, path: str, name: str) -> Iterator[tuple[Path, int]]:
    folder = mount / path.lstrip("/")
    while True:
        try:
            said = (folder / name).read_text(encoding="ascii").strip()
        except OSError:
            said = ""
        if said.isdigit() and int(said) < UNLIMITED:
            yield folder / name, int(said)
        if folder == mount or mount not in folder.parents:
            return
        folder = folder.parent


def meminfo(root: Path = Path("/")) -> Mapping[str, int]:
    """Bytes by name."""
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
