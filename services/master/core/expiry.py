"""Objects with a time to live: a miss as soon as it ends, and their space returns as after a remove.

Runs before the step's command, so that no call finds what has expired. Bounded work a step; what is left over can no
longer be read either (`State.overdue`). Durations only: nodes keep what is left of each (invariant 14).
"""

from services.master.core.catalogue import Catalogue
from services.master.core.tables import State

EXPIRIES_PER_STEP = 1_024  # a step must stay short


class Expiry:
    def __init__(self, state: State, catalogue: Catalogue) -> None:
        self.state = state
        self.catalogue = catalogue

    def run(self) -> None:
        state = self.state
        for _ in range(EXPIRIES_PER_STEP):
            due = self.next_ms()
            if due is None or due > state.now:
                break
            _, obj = state.expiring.peekitem(0)
            state.counters.expired_objects += 1
            self.catalogue.discard(obj)
        due = self.next_ms()
        state.overdue = due is not None and due <= state.now

    def next_ms(self) -> int | None:
        """When the next object expires."""
        return self.state.expiring.peekitem(0)[0][0] if self.state.expiring else None
