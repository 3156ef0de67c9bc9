"""Clients of the proxy that keep asking while something breaks, and count what they got."""

import http.client
import random
import threading
import time
from types import TracebackType
from typing import Self

from demo.traffic import Prompt, RequestError, ask

CLIENTS = 3
ANSWER_TOKENS = 8


class Load:
    """Requests from the start of the `with` block to its end; `failures` says what went wrong, if anything did.

    Prompts come back, so that answers use the store.
    """

    def __init__(self, address: str, prompts: list[Prompt]) -> None:
        self.answered = 0
        self.cached_tokens = 0
        self.slowest_s = 0.0
        self.failures: list[str] = []
        self._address = address
        self._prompts = prompts
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, requests: int, *, deadline_s: float = 120.0) -> None:
        """Returns when that many more were answered; a load that stands still is a failure."""
        wanted, deadline = self.answered + requests, time.monotonic() + deadline_s
        while self.answered < wanted:
            if time.monotonic() > deadline:
                self.failures.append(f"{self.answered} of {wanted} requests were answered after {deadline_s:.0f} s")
                return
            time.sleep(0.05)

    def _ask(self, seed: int) -> None:
        generator = random.Random(seed)
        while not self._stop.is_set():
            prompt = generator.choice(self._prompts)
            begun = time.monotonic()
            try:
                answer = ask(self._address, prompt, max_tokens=ANSWER_TOKENS)
            except (RequestError, OSError, http.client.HTTPException, ValueError) as error:
                with self._lock:
                    self.failures.append(f"{prompt.path}: {error!r}"[:300])
                time.sleep(0.2)
                continue
            with self._lock:
                self.answered += 1
                self.cached_tokens += answer.cached_tokens
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
                if len(answer.token_ids) != ANSWER_TOKENS:
                    self.failures.append(f"{len(answer.token_ids)} tokens instead of {ANSWER_TOKENS}")
