"""Which of the puts of a key is found: the one with the highest write id, now and after a restart of the master.

An ordinary put gives way to what can be read (invariant 2: a key keeps its bytes). One that replaces gets its write id
anew when it ends, so that it beats whatever ended before: of two at once the last to end wins. Until a put is recorded
by its holders nothing of it is found, and what was found before stays (invariant 1).
"""

from services.master.core.objects import Terms
from services.master.core.pending import Write
from services.master.core.tables import State


def stays(state: State, key: bytes, terms: Terms) -> bool:
    """Whether a put of these terms is not to begin, for the key keeps what it has."""
    return not terms.replaces and state.has(key)


def may_show(state: State, write: Write) -> bool:
    """Whether what is found under the key, if anything is, goes for this write."""
    shown = state.objects.get(write.key)
    if state.replaced and write.write_id < state.replaced.get(write.key, 0):
        return False
    if shown is None:
        return True
    return shown.write_id < write.write_id and (write.terms.replaces or not state.readable(shown))


def renumber(state: State, write: Write) -> None:
    """It ends now: what has ended before is older."""
    before = write.write_id
    state.next_write_id += 1
    write.write_id = state.next_write_id
    state.writes[write.write_id] = state.writes.pop(before)
    if before in state.pinned_writes:
        state.pinned_writes[write.write_id] = state.pinned_writes.pop(before)
