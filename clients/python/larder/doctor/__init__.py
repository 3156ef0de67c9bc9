"""`larder doctor`: looks at this host and at a cluster from here, and says what is wrong and what mends it.

One module per part, one function per check; a check that fails itself is a finding, and each has its time limit.
Nothing is changed and nothing secret is shown. A check is here only if Larder depends on what it looks at.
"""

import asyncio
import os
import shlex
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from larder.doctor.cluster import check_cluster
from larder.doctor.engines import check_logs, check_proxy
from larder.doctor.finding import Finding, Part, Verdict
from larder.doctor.machine import check_machine
from larder.doctor.network import check_masters
from larder.doctor.pool_folder import check_pool_folder
from larder.doctor.reaching import check_nodes
from larder.doctor.settings import check_settings
from larder.doctor.transfer_engine import check_transfer_engine
from larder.doctor.versions import check_versions
from larder.errors import InvalidArgument
from larder.options import Options

POOL_DIR: Final = Path("/dev/shm")  # noqa: S108  (the storage node's own default)
CHECK_S: Final = 9.0
"""What one check may take; they go in two rounds at most, side by side."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What to look at."""

    given: str | None
    resolve: Callable[[], Options]
    pool_dir: Path
    dram: int | None = None
    proxies: Sequence[str] = ()
    logs: Sequence[Path] = ()


async def examine(subject: Subject) -> list[Finding]:
    options, trouble = _options(subject)
    async with asyncio.TaskGroup() as group:
        here = group.create_task(_guard("this host", _host(subject, options, trouble)))
        engine = group.create_task(_guard("transfer engine", _engine()))
        network = group.create_task(check_masters(options.masters if options is not None else ()))
        proxies = [group.create_task(_guard(f"proxy {each}", check_proxy(each))) for each in subject.proxies]
    reached = network.result()
    has_engine = all(each.verdict is not Verdict.BAD for each in engine.result())
    nodes = reached.status.nodes if reached.status is not None else ()
    return [
        *here.result(),
        *engine.result(),
        *reached.findings,
        *check_cluster(reached, _start_node(subject)),
        *await _guard("bytes", check_nodes(nodes, options.engine_ports if options else None, has_engine=has_engine)),
        *check_versions(reached.status),
        *chain.from_iterable(each.result() for each in proxies),
    ]


def _options(subject: Subject) -> tuple[Options | None, str]:
    try:
        return subject.resolve(), ""
    except InvalidArgument as error:
        return None, str(error)


async def _host(subject: Subject, options: Options | None, trouble: str) -> list[Finding]:
    return [
        *check_settings(os.environ, subject.given, options, trouble),
        *check_machine(subject.dram),
        *check_pool_folder(subject.pool_dir, subject.dram),
        *check_logs(subject.logs),
    ]


async def _engine() -> list[Finding]:
    return [await check_transfer_engine()]


def _start_node(subject: Subject) -> str:
    words = ["larder", "node"]
    words += ["--dram", str(subject.dram)] if subject.dram is not None else []
    words += ["--pool-dir", shlex.quote(str(subject.pool_dir))] if subject.pool_dir != POOL_DIR else []
    return " ".join(words)


async def _guard(name: str, check: Coroutine[Any, Any, list[Finding]]) -> list[Finding]:
    """A check that breaks or hangs says so, and the others go on."""
    part = Part(name)
    try:
        async with asyncio.timeout(CHECK_S):
            return await check
    except TimeoutError:
        return [part.skipped("the check itself", f"took more than {CHECK_S:g} s")]
    except Exception as error:
        return [part.skipped("the check itself", f"failed: {type(error).__name__}: {error}")]
