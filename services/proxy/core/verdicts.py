"""What an engine's status says of a leg: whether it did its work, and whose fault it is that it did not."""

from typing import Final

from services.proxy.core.routing import Outcome

BUSY: Final = frozenset({429, 503, 529})
RETRIED: Final = BUSY | {500, 502, 504}
"""The engine's own failure: another one may do better. Other errors are a client's to see."""

_UNKNOWN_HERE: Final = frozenset({401, 403, 404})  # key or model: another engine may know them


def of_failure(status: int) -> Outcome:
    return Outcome.BUSY if status in BUSY else Outcome.BROKEN


def of_prefill(status: int, content: bytes) -> tuple[Outcome, str]:
    """Of a whole answer, with the reason where it is not DONE. Only a 200 is a success."""
    if status == 200:
        return (Outcome.DONE, "") if content else (Outcome.BROKEN, "it answered 200 without a body")
    if 400 <= status < 500 and status not in BUSY:
        outcome = Outcome.REFUSED if status in _UNKNOWN_HERE else Outcome.INVALID
    else:
        outcome = of_failure(status)
    return outcome, f"it answered {status}"
