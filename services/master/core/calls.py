"""Answers to calls, once for each logical request (invariant 5).

Retries of a request that is being worked on wait for its answer; later ones get the same answer again. Recent answers
are kept: at most `remembered_max` keys in all.
"""

from collections import OrderedDict

from services.master.core.arguments import Invalid
from services.master.core.messages import Answer, PutAborted, PutEnded, PutStarted, Rejected, Removed, Reply
from services.master.core.tables import State

REQUEST_ID_BYTES = 16
RETRY_MS = 100  # by then writes have ended and waiting puts have found room
Remembered = PutStarted | PutEnded | PutAborted | Removed
Request = tuple[type[Remembered], bytes]  # the kind of answer, and the caller's id


class Overloaded(Exception):
    """The master's limit: refused before anything changed; the same call may pass in about RETRY_MS."""


class Calls:
    def __init__(self, state: State) -> None:
        self.state = state
        self._waiting: dict[Request, list[int]] = {}
        self._answered: OrderedDict[Request, Remembered] = OrderedDict()
        self._remembered_keys = 0

    def reply(self, call: int, answer: Answer) -> None:
        self.state.effects.append(Reply(call, answer))

    def begin(self, call: int, request_id: bytes, kind: type[Remembered]) -> bool:
        """Whether the request is new. A retry waits for the first one's answer, or gets it at once."""
        request = (kind, request_id)
        if self.is_new(request_id, kind):
            self._waiting[request] = [call]
            return True
        if request in self._waiting:
            self._waiting[request].append(call)
        else:
            self.reply(call, self._answered[request])
        return False

    def is_new(self, request_id: bytes, kind: type[Remembered]) -> bool:
        if len(request_id) != REQUEST_ID_BYTES:
            raise Invalid(f"request_id has {len(request_id)} bytes: give {REQUEST_ID_BYTES} random ones")
        return (kind, request_id) not in self._waiting and (kind, request_id) not in self._answered

    def refuse(self, call: int, error: Invalid | Overloaded) -> None:
        """A refusal is not remembered: the same request may pass later."""
        is_overload = isinstance(error, Overloaded)
        self.reply(call, Rejected(is_overload, str(error), RETRY_MS if is_overload else 0))

    def finish(self, request_id: bytes, answer: Remembered) -> None:
        request = (type(answer), request_id)
        for call in self._waiting.pop(request):
            self.reply(call, answer)
        self._answered[request] = answer
        self._remembered_keys += len(answer.results)
        while self._remembered_keys > self.state.config.remembered_max:
            _, oldest = self._answered.popitem(last=False)
            self._remembered_keys -= len(oldest.results)
