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
    orders = json.loads(line)
    settings = ProxySettings(**orders["settings"])
    tune()
    status = run(
        lambda stop: _work(settings, orders, stop),
        prog=f"proxy[{orders['index']}]",
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    if orders.get("alone"):
        shutil.rmtree(orders["directory"], ignore_errors=True)  # the parent could not
    return status


async def _work(settings: ProxySettings, orders: dict[str, Any], stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def parent_gone() -> None:
        loop.remove_reader(sys.stdin)
        orders["alone"] = True
        stop.set()

    loop.add_reader(sys.stdin, parent_gone)  # nothing more is written to it
    await serve(settings, stop, announce, WorkerSlot(Path(orders["directory"]), orders["index"], orders["count"]))


if __name__ == "__main__":
    sys.exit(main())
