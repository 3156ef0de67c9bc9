"""One of several workers, as its parent (workers.py) starts it: the first line of its stdin tells it what to do, and
the end of stdin to end. It says on stdout when it serves."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from services.common.service import announce, run
from services.proxy.config import ProxySettings
from services.proxy.server import serve, tune
from services.proxy.siblings import WorkerSlot


def main() -> int:
    line = sys.stdin.buffer.readline()
    if not line:
        return 1  # its parent is gone already
    told = json.loads(line)
    settings = ProxySettings(**told["settings"])
    tune()
    status = run(
        lambda stop: _work(settings, told, stop),
        prog=f"proxy[{told['index']}]",
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    if told.get("alone"):
        shutil.rmtree(told["directory"], ignore_errors=True)  # the parent could not
    return status


async def _work(settings: ProxySettings, told: dict[str, Any], stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def parent_gone() -> None:
        loop.remove_reader(sys.stdin)
        told["alone"] = True
        stop.set()

    loop.add_reader(sys.stdin, parent_gone)  # nothing more is written to it
    await serve(settings, stop, announce, WorkerSlot(Path(told["directory"]), told["index"], told["count"]))


if __name__ == "__main__":
    sys.exit(main())
