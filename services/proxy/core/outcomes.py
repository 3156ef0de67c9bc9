"""How legs end, and what an engine's status tells of that: whether it did its work, and if not, whose fault it is."""

from enum import Enum
from typing import Final

BUSY: Final = frozenset({429, 503, 529})
RETRIED: Final = BUSY | {500, 502, 504}
"""The engine's own failure: another one may do better. Other errors are the client's to see."""

_UNKNOWN_HERE: Final = frozenset({401, 403, 404})  # the key or the model: another engine may know them


class Outcome(Enum):
    """How a leg ended."""

    DONE = "done"  # the engine answered: a decode with anything but a 5xx, a prefill with 200
    UNREACHABLE = "unreachable"  # no connection, refused: the engine cannot have seen the request
    UNCONNECTED = "unconnected"  # no connection in time: likewise
    DIED = "died"  # it broke off and then refused connections: perhaps because of this request
    BUSY = "busy"  # the engine refused it for lack of room (429, 503)
    BROKEN = "broken"  # the engine may have run the request, but gave no usable answer
    TIMED_OUT = "timed_out"  # as BROKEN, because time ran out
    NOTHING = "nothing"  # a prefill was done, but hands over no KV: nor would another's
    REFUSED = "refused"  # a prefill engine does not know the key or the model; another one may
    INVALID = "invalid"  # a prefill engine says that the request is wrong: decode will tell


def of_failure(status: int) -> Outcome:
    return Outcome.BUSY if status in BUSY else Outcome.BROKEN


def of_prefill(status: int, content: bytes) -> tuple[Outcome, str]:
    """Of a whole answer, with the reason if it is not DONE. Only a 200 is a success."""
    if status == 200:
        return (Outcome.DONE, "") if content else (Outcome.BROKEN, "it answered 200 without a body")
    if 400 <= status < 500 and status not in BUSY:
        outcome = Outcome.REFUSED if status in _UNKNOWN_HERE else Outcome.INVALID
    else:
        outcome = of_failure(status)
    return outcome, f"it answered {status}"
