"""What a storage node is to the master: its phases, and what takes it from one to the next (invariants 8 and 9).

                  hello                  adopted
        (nobody) ───────▶ ATTACHING ───────────────▶ LIVE ◀──────── word ────────┐
                           ▲     │                    │  │                        │
                           │     │                    │  └──────── silence ───▶ SILENT
                     hello │     │ cut                │ cut                       │ cut
                           │     ▼                    ▼                           │
                           └─── AWAY ◀────────────────┴───────────────────────────┘
                                  │
                                  └── given up ──▶ GONE

Only ATTACHING, LIVE and SILENT nodes have a stream: one that falls silent during its inventory is cut off. Copies are
offered and placed on LIVE nodes alone; SILENT and AWAY ones are suspect, and may come back with what they hold. Beside
its phase a node with a stream may have been asked for a word (`Node.probed_at`), and so be silent sooner.
"""

from enum import Enum
from typing import Final


class Phase(Enum):
    ATTACHING = "attaching"  # its inventory is on the way: nothing is placed or read there
    LIVE = "live"
    SILENT = "silent"  # its stream lasts, and nothing comes
    AWAY = "away"  # its stream has ended
    GONE = "gone"  # its copies are lost

    @property
    def is_suspect(self) -> bool:
        """Whether the node may be dead, and may come back."""
        return self is Phase.SILENT or self is Phase.AWAY

    @property
    def said(self) -> str:
        """In the words of metrics and of `larder status`."""
        return "suspect" if self.is_suspect else "attached" if self is Phase.LIVE else self.value


class Event(Enum):
    HELLO = "hello"
    ADOPTED = "adopted"  # what it holds is known
    SILENCE = "silence"
    WORD = "word"  # of whatever kind
    CUT = "cut"  # by either side
    GIVEN_UP = "given up"


TRANSITIONS: Final = {
    Phase.ATTACHING: {Event.ADOPTED: Phase.LIVE, Event.CUT: Phase.AWAY},
    Phase.LIVE: {Event.SILENCE: Phase.SILENT, Event.CUT: Phase.AWAY},
    Phase.SILENT: {Event.WORD: Phase.LIVE, Event.SILENCE: Phase.SILENT, Event.CUT: Phase.AWAY},
    Phase.AWAY: {Event.HELLO: Phase.ATTACHING, Event.GIVEN_UP: Phase.GONE},
    Phase.GONE: {},
}
