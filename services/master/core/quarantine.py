"""Why an extent that was released is not free yet: its states, and what ends each (invariant 7).

Everything that changes such a state is in the table below; who is told of it, and what is counted, is in `extents`.

    its node may hold it, and         ... and a lease on it       a write to it
    nobody may be reading it              has not ended             may go on
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

    FORGETTING = "forgetting"  # the node's acknowledgement that it has forgotten the copy, and nothing else
    LEASED = "leased"  # that, and the end of the last lease
    OVERDUE = "overdue"  # that alone by now; not counted as soon to come
    FORGOTTEN = "forgotten"  # the end of the last lease
    RESTING = "resting"  # the time after which no write begun in time may land
    WATCHED = "watched"  # the node's word that nobody is writing there by shared memory
    FREE = "free"


class Event(StrEnum):
    TIME = "time"  # its time has come
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
"""Of what could be read; the others are of writes."""
UNACKNOWLEDGED: Final = frozenset({Hold.FORGETTING, Hold.LEASED, Hold.OVERDUE, Hold.WATCHED})
"""Its node is to say a word on it."""
