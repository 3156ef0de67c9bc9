"""A client process of the chaos test: threads that put, get, match and remove what others put too, and record it all.

    python -m tests.chaos.client --master HOST:PORT --name c1 --number 1 --seed 7 --history FILE --transports shm,engine

Runs until SIGTERM. What a get returns is looked at in full, here, byte by byte; whether it should have been there is
the checker's business. Every choice comes from the seed; what happens then is the machine's.
"""

import argparse
import random
import signal
import threading
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import larder

from tests.chaos import values
from tests.chaos.history import ERROR, MISS, OK, Op, Recorder

SIZES = (64, 1000, 4096, 65_536, 300_000, 1 << 20, 3 << 20)
SMALL = 4  # of SIZES, for batches
LARGE = (8 << 20, 16 << 20)  # several slices; a fault nearly always hits one in the middle
KEYS = 60  # removed and put again: so extents change hands all the time
KEPT = 120  # never removed: these have to outlive every fault
PAUSE_S = 0.03
LARGE_PAUSE_S = 1.5
TIMEOUT_S = 5.0
COPIES = (1, 2, 2, 2, 3)


class Client:
    """Operations of one process. `number` makes its puts' numbers unique."""

    def __init__(self, store: larder.Store, recorder: Recorder, *, number: int, seed: int) -> None:
        self.store = store
        self.recorder = recorder
        self.seed = seed
        self.puts = count(number << 40)

    def put(self, keys: Sequence[str], size: int, copies: int) -> None:
        numbers = [next(self.puts) for _ in keys]
        buffers = [values.value(k.encode(), n, seed=self.seed, size=size) for k, n in zip(keys, numbers, strict=True)]
        with self.recorder.ops("put", keys, numbers, wanted=copies) as ops:
            try:
                answers = self.store.put_many(keys, buffers, copies=copies)
            except larder.LarderError as error:
                answers = [error] * len(ops)
            for op, answer in zip(ops, answers, strict=True):
                if isinstance(answer, larder.PutResult):
                    op.outcome, op.copies, op.existed = OK, answer.copies, answer.existed
                else:
                    fail(op, answer)

    def get(self, keys: Sequence[str]) -> None:
        with self.recorder.ops("get", keys) as ops:
            try:
                answers = self.store.get_many(keys)
            except larder.LarderError as error:
                answers = [error] * len(ops)
            for op, answer in zip(ops, answers, strict=True):
                self.note_read(op, answer)

    def view(self, key: str) -> None:
        with self.recorder.op("get", key) as op:
            try:
                with self.store.view(key) as memory:
                    self.note_read(op, memory)
            except larder.LarderError as error:  # its lease ended: what was read proves nothing, wrong bytes neither
                fail(op, error)

    def note_read(self, op: Op, answer: bytes | memoryview | larder.LarderError | None) -> None:
        if answer is None:
            op.outcome = MISS
        elif isinstance(answer, larder.LarderError):
            fail(op, answer)
        else:
            try:
                op.number = values.read(op.key.encode(), answer, seed=self.seed)
                op.outcome = OK
            except values.Wrong as wrong:
                fail(op, wrong)

    def match(self, keys: Sequence[str]) -> None:
        """What was seen: the leading keys present, the next one missing, nothing of the others."""
        with self.recorder.ops("seen", keys) as ops:
            try:
                matched = self.store.match(keys)
            except larder.LarderError as error:
                for op in ops:
                    fail(op, error)
                return
            for op in ops[:matched]:
                op.outcome = OK
            for op in ops[matched : matched + 1]:
                op.outcome = MISS
            del ops[matched + 1 :]

    def remove(self, key: str) -> None:
        with self.recorder.op("remove", key) as op:
            try:
                op.outcome = OK if self.store.remove(key) else MISS
            except larder.LarderError as error:
                fail(op, error)

    # -- what the threads do -------------------------------------------------------------------------------------------

    def work(self, generator: random.Random, stop: threading.Event) -> None:
        """Single keys and batches of small ones, which all clients share."""
        while not stop.wait(PAUSE_S * generator.random()):
            keys = generator.sample(range(KEYS), 6)
            removable, batch = f"k-{keys[0]}", [f"b-{number}" for number in keys]
            single = generator.choice([removable, f"kept-{generator.randrange(KEPT)}"])
            what = generator.random()
            if what < 0.28:
                self.put([single], generator.choice(SIZES), generator.choice(COPIES))
            elif what < 0.36:
                self.put(batch, generator.choice(SIZES[:SMALL]), generator.choice(COPIES))
            elif what < 0.62:
                self.get([single])
            elif what < 0.70:
                self.get(batch)
            elif what < 0.76:
                self.view(single)
            elif what < 0.84:
                self.match(sorted(batch))
            elif what < 0.97:
                self.remove(removable)
            else:
                self.remove(batch[0])

    def work_large(self, generator: random.Random, stop: threading.Event) -> None:
        while not stop.wait(LARGE_PAUSE_S * generator.random()):
            key = f"large-{generator.randrange(3)}"
            self.put([key], generator.choice(LARGE), 1)
            self.get([key])
            self.remove(key)


def fail(op: Op, error: Exception) -> None:
    op.outcome, op.error, op.said = ERROR, type(error).__name__, str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("master", "name", "transports", "history"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("number", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--trusting", action="store_true", help="verify no checksums, so that wrong bytes are seen")
    args = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    transports = args.transports.split(",")
    with larder.connect(args.master, transports=transports, verify=not args.trusting, timeout_s=TIMEOUT_S) as store:
        client = Client(store, Recorder(Path(args.history), args.name), number=args.number, seed=args.seed)
        threads = [
            threading.Thread(target=work, args=(random.Random(f"{args.seed} {args.number} {place}"), stop))
            for place, work in enumerate([client.work, client.work, client.work_large])
        ]
        for thread in threads:
            thread.start()
        print(f"client ready: {args.name}", flush=True)
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
