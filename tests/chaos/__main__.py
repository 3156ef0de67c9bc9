"""Real processes under kill -9, SIGSTOP, network cuts and full disks, and a checker over what clients saw of it.

    python -m tests.chaos --seconds 60 --rounds 3 --seed 7

Each round is a cluster of its own. Status 0 where no rule was broken (see tests.chaos.checker). Logs and histories
stay in --work-dir when one was. Bounded: loops end with the seconds given, and nothing outside this machine is asked.
"""

import argparse
import json
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import larder
from rich.console import Console

from tests.chaos import checker, history, hosts, report
from tests.chaos.client import KEPT, KEYS, Client
from tests.chaos.history import History, Recorder, Sample
from tests.chaos.nemesis import Nemesis
from tests.chaos.world import CLIENTS, World

SAMPLE_S = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="of one round, 20 or more")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--work-dir", type=Path, default=Path(".work/chaos"))
    args = parser.parse_args()
    if args.seconds < 20 or args.rounds < 1:
        parser.error("a round takes 20 seconds or more, and there is at least one")
    hosts.enter([sys.executable, "-m", "tests.chaos", *sys.argv[1:], "--seed", str(args.seed)])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    console = Console(width=None if sys.stdout.isatty() else 120)
    broken = 0
    for number in range(args.rounds):
        seed = args.seed + number
        work_dir = args.work_dir.absolute() / str(seed)
        shutil.rmtree(work_dir, ignore_errors=True)  # of a run with the same seed
        console.print(f"round {number + 1} of {args.rounds}: {args.seconds} s, seed {seed}, logs in {work_dir}")
        broken += run(work_dir, console, seed=seed, seconds=args.seconds)
    return 1 if broken else 0


def run(work_dir: Path, console: Console, *, seed: int, seconds: float) -> int:
    """One round; the number of violations."""
    world = World(work_dir, seed=seed)
    if not world.hosts.apart:
        console.print("no network namespaces here: no cuts, no full disks", style="yellow")
    nemesis = Nemesis(world, seed=seed)
    samples: list[Sample] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            samples.append(Sample(time.monotonic(), world.master_metric("evicted_objects_total")))

    sampler = threading.Thread(target=sample)
    try:
        world.start()
        sampler.start()
        nemesis.run(time.monotonic() + seconds)
        for name in CLIENTS:
            world.cluster.processes[name].stop()
        audit(world)
    finally:
        stop.set()
        if sampler.is_alive():
            sampler.join()
        world.close()
    ops = [op for path in world.histories for op in history.read(path)]
    wholes = [whole_at for _, whole_at, _ in nemesis.heals]
    seen = History(ops, nemesis.outages, wholes, samples, world.unexpected + nemesis.unexpected)
    (work_dir / "nemesis.json").write_text(json.dumps(asdict(replace(seen, ops=[])), indent=1))
    found = checker.check(seen)
    report.show(console, seen, nemesis.heals, found)
    return len(found)


def audit(world: World) -> None:
    """Once more every key, by one who trusts whatever the pools hold."""
    path = world.cluster.work_dir / "history-audit.jsonl"
    world.histories.append(path)
    with larder.connect(world.cluster.master, verify=False) as store:
        auditor = Client(store, Recorder(path, "auditor"), number=len(world.histories), seed=world.seed)
        for prefix, numbers in (("kept", KEPT), ("k", KEYS), ("b", KEYS), ("large", 3)):
            auditor.get([f"{prefix}-{number}" for number in range(numbers)])


if __name__ == "__main__":
    sys.exit(main())
