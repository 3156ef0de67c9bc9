"""A storage node's phases, as the master sees them, and what leads from one to the next (invariants 8 and 9).

                  hello                  adopted
        (nobody) ───────▶ ATTACHING ───────────────▶ LIVE ◀──────── heard ───────┐
                           ▲     │                    │  │                        │
                           │     │                    │  └──────── silence ───▶ SILENT
                     hello │     │ cut                │ cut                       │ cut
                           │     ▼                    ▼                           │
                           └─── AWAY ◀────────────────┴───────────────────────────┘
                                  │
                                  └── given up ──▶ GONE

Only ATTACHING, LIVE and SILENT nodes have a stream: one that falls silent during its inventory is cut off. Copies are
offered and placed on LIVE nodes alone; SILENT and AWAY ones are suspect, and may return with what they hold. Besides
its phase a node with a stream may have been asked for a heartbeat (`Node.probed_at`), and count as silent sooner.
"""

from enum import Enum
from typing import Final


class Phase(Enum):
    ATTACHING = "attaching"  # its inventory is on the way: nothing is placed or read there
    LIVE = "live"
    SILENT = "silent"  # its stream lasts, but nothing comes
    AWAY = "away"  # its stream has ended
    GONE = "gone"  # its copies are lost

    @property
    def is_suspect(self) -> bool:
        """Whether the node may be dead, or may come back."""
        return self is Phase.SILENT or self is Phase.AWAY

    @property
    def said(self) -> str:
        """In the words of the metrics and of `larder status`."""
        return "suspect" if self.is_suspect else "attached" if self is Phase.LIVE else self.value


class Event(Enum):
    HELLO = "hello"
    ADOPTED = "adopted"  # what it holds is known now
    SILENCE = "silence"
    HEARD = "heard"  # whatever it said
    CUT = "cut"  # by either side
    GIVEN_UP = "given up"


TRANSITIONS: Final = {
    Phase.ATTACHING: {Event.ADOPTED: Phase.LIVE, Event.CUT: Phase.AWAY},
    Phase.LIVE: {Event.SILENCE: Phase.SILENT, Event.CUT: Phase.AWAY},
    Phase.SILENT: {Event.HEARD: Phase.LIVE, Event.SILENCE: Phase.SILENT, Event.CUT: Phase.AWAY},
    Phase.AWAY: {Event.HELLO: Phase.ATTACHING, Event.GIVEN_UP: Phase.GONE},
    Phase.GONE: {},
}
