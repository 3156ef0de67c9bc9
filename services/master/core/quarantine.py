"""Why a released extent is not free yet: its states, and what ends each (invariant 7).

The table below has every change of state; what happens then is in `extents`.

    a copy that nobody                a copy under a              a write to it
    may be reading                    lease or a read               may go on
               │                               │                        │
          FORGETTING                        LEASED ──time──▶ OVERDUE  RESTING
               │                               │                │       │ time: its node is asked
               │                          acknowledged          │       ▼ whether anybody writes there
               │                               ▼                │    WATCHED
          acknowledged                     FORGOTTEN       acknowledged │ acknowledged
               │                               │ time           │       │
               └───────────────▶ FREE ◀────────┴────────────────┴───────┘
"""

from enum import StrEnum
from typing import Final


class Hold(StrEnum):
    """What an extent waits for."""

    FORGETTING = "forgetting"  # for the node's acknowledgement that it has forgotten the copy, and nothing else
    LEASED = "leased"  # for that, and the end of the last lease
    OVERDUE = "overdue"  # for that alone by now, and not counted as soon free
    FORGOTTEN = "forgotten"  # for the end of the last lease
    RESTING = "resting"  # until no write that began in time can still land
    WATCHED = "watched"  # for the node to say that nobody writes there by shared memory
    FREE = "free"


class Event(StrEnum):
    TIME = "time"  # its `not_before` has come
    ACKNOWLEDGED = "acknowledged"  # by its node


TRANSITIONS: Final = {
    Hold.FORGETTING: {Event.ACKNOWLEDGED: Hold.FREE},
    Hold.LEASED: {Event.ACKNOWLEDGED: Hold.FORGOTTEN, Event.TIME: Hold.OVERDUE},
    Hold.OVERDUE: {Event.ACKNOWLEDGED: Hold.FREE},
    Hold.FORGOTTEN: {Event.TIME: Hold.FREE},
    Hold.RESTING: {Event.TIME: Hold.WATCHED},
    Hold.WATCHED: {Event.ACKNOWLEDGED: Hold.FREE},
    Hold.FREE: {},
}
OF_COPIES: Final = frozenset({Hold.FORGETTING, Hold.LEASED, Hold.OVERDUE, Hold.FORGOTTEN})
"""Those of copies; the others are of writes."""
UNACKNOWLEDGED: Final = frozenset({Hold.FORGETTING, Hold.LEASED, Hold.OVERDUE, Hold.WATCHED})
"""Those in which the node owes an acknowledgement."""
