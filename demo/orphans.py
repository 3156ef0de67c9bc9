"""Ends the processes of a program that died before it could: SIGKILL, a crash, a closed terminal.

`demo.processes` starts one of these beside itself and tells it, line by line on standard input, which process groups
live (+GROUP) and which have ended (-GROUP). Standard input ends when the program does, however that came about; then
what is left gets SIGTERM, so that storage nodes remove their pools, and later SIGKILL. Imports nothing but the standard
library: it has to start fast.
"""

import os
import signal
import sys
import time
from contextlib import suppress

GRACE_S = 5.0


def main() -> None:
    groups: set[int] = set()
    for line in sys.stdin:
        change = groups.add if line[0] == "+" else groups.discard
        change(int(line[1:]))
    if not groups:
        return
    _signal(groups, signal.SIGTERM)
    _signal(groups, signal.SIGCONT)  # for the paused ones
    time.sleep(GRACE_S)
    _signal(groups, signal.SIGKILL)


def _signal(groups: set[int], number: signal.Signals) -> None:
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


if __name__ == "__main__":
    main()
