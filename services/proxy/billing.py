"""A decode engine's answer in which the numbers of cached tokens are the prefill's: see core/usage.

A pair's prefill may be answered a moment after decode's answer has begun, and is then waited for; what it has not said
after WAIT_S is left as decode says it.
"""

import asyncio
from typing import Final

from multidict import CIMultiDict

from services.proxy.core.usage import Cached, Corrector
from services.proxy.engine_http.upstream import Answer

WAIT_S: Final = 1.0

Bill = asyncio.Future[Cached | None]
"""What the prefill found; None: nobody knows."""


class BilledAnswer(Answer):
    def __init__(self, answer: Answer, bill: Bill) -> None:
        super().__init__(answer.response, answer.to)
        self._bill = bill
        self._corrector = Corrector()
        self._grown = 0

    @property
    def headers(self) -> CIMultiDict[str]:
        """To be asked for once its first bytes were read: its length is known only if that was all."""
        headers = super().headers
        if (length := headers.pop("Content-Length", None)) is not None and self.at_end:
            headers["Content-Length"] = str(int(length) + self._grown)
        return headers

    async def read(self) -> bytes:
        while True:
            piece = await super().read()
            last = not piece or self.at_end
            if self._corrector.concerns(piece) and not self._bill.done():
                await asyncio.wait((self._bill,), timeout=WAIT_S)
            cached = self._bill.result() if self._bill.done() and not self._bill.cancelled() else None
            corrected = self._corrector.feed(piece, cached, last=last)
            self._grown += len(corrected) - len(piece)
            if corrected or last:
                return corrected
