"""Tells operators when repairs begin and when they are done, in one line each rather than one an object."""

from services.master.core.tables import State

CALM_MS = 1_000  # with nothing to repair, before repairs count as done


class Episode:
    def __init__(self, state: State) -> None:
        self.state = state
        self._begun_at: int | None = None
        self._calm_since: int | None = None
        self._before = (0, 0)  # copies made and failed tries, when it began

    def look(self, pending: int) -> None:
        """Called in every step: `pending` objects lack copies."""
        if pending:
            self._calm_since = None
            if self._begun_at is None:
                self._begun_at, self._before = self.state.now, self._done()
                self.state.note(f"repairs begin: objects that lack copies: {pending}")
        elif self._begun_at is not None and self._calm_since is None:
            since = self._calm_since = self.state.now
            self.state.at(since + CALM_MS, lambda: self._end(since))

    def _end(self, calm_since: int) -> None:
        if self._calm_since != calm_since or self._begun_at is None:
            return
        made, failed = (now - before for now, before in zip(self._done(), self._before, strict=True))
        took_s = (calm_since - self._begun_at) / 1000
        self.state.note(f"repairs are done: copies made: {made}, tries that failed: {failed}, in {took_s:.1f} s")
        self._begun_at = self._calm_since = None

    def _done(self) -> tuple[int, int]:
        return self.state.counters.repaired_copies, self.state.counters.failed_repairs
