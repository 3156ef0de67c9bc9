"""One request's legs: sends what its Route decides, and hands the decode engine's answer to the client's `reply`.

Nothing reaches the client before the decode engine's first byte is there, or the first event of its stream was looked
at: until then another engine can be asked. After that a failure is the client's to see (reply). Cancelling run(), when
the client is gone, cancels the legs under way. Keeps invariant 16 for its part.
"""

import asyncio
import logging
import time
import uuid
from typing import Any, Final, NamedTuple

from multidict import CIMultiDict

from services.proxy.billing import Bill, BilledAnswer
from services.proxy.call import Call
from services.proxy.config import ProxySettings
from services.proxy.core import legs, outcomes
from services.proxy.core.codec import encode
from services.proxy.core.engine import Address, Booking, Handover, Role
from services.proxy.core.events import failure_of
from services.proxy.core.outcomes import Outcome
from services.proxy.core.router import Router
from services.proxy.core.routing import Decision, Decode, Finished, Pair, Prefill, Route, Unserved
from services.proxy.core.usage import cached_of
from services.proxy.deadlines import Within
from services.proxy.engine_http.heads import header_lines
from services.proxy.engine_http.upstream import Answer, Leg, LegFailed, Upstream
from services.proxy.metrics import Metrics
from services.proxy.reply import ClientGone, Ending, Held, Reply
from services.proxy.story import LegNote

logger = logging.getLogger(__name__)

_PREFILL_BYTES_MAX: Final = 8 << 20
_HELD_BYTES_MAX: Final = 1 << 20


class _Failed(NamedTuple):
    outcome: Outcome
    reason: str


class Exchange:
    def __init__(
        self, call: Call, router: Router, upstream: Upstream, metrics: Metrics, settings: ProxySettings
    ) -> None:
        self._call = call
        self._upstream = upstream
        self._reply = Reply(call, metrics, upstream.deadlines.within, slow_client_s=settings.slow_client_timeout)
        self._metrics = metrics
        self._settings = settings
        self._router = router
        pays = call.ask.has_media or call.ask.prompt_tokens >= settings.prefill_min_tokens
        prefill = call.asked is not None and pays
        self._route = Route(router, call.ask, prefill=prefill, repeatable=call.repeatable)
        self._params: dict[str, Any] | None = None  # tell the decode leg where the KV lies
        self._bill: Bill | None = None  # None: no prefill was done for this request
        self._held: Held | None = None
        self._refusals: dict[Address, tuple[LegNote, int]] = {}  # by prefill engines: it is not known yet whose fault
        self._decoding: Leg | None = None
        self._is_prefilling = False  # in parallel with the decode leg, which waits for it
        self._is_refused = False  # decode's answer puts the blame on the client
        self._limit: Within  # of the wait for an answer, and then for each further piece of it
        self._alone = False

    async def run(self) -> Ending:
        limit_s, fail = self._settings.request_timeout, self._reply.fail
        try:
            with self._upstream.deadlines.within(limit_s - (time.monotonic() - self._call.story.began)) as self._limit:
                return await self._follow()
        except TimeoutError:
            began = self._reply.has_begun
            what = "no byte of the answer passed for" if began else "the request was not answered within"
            return await fail(504, f"{what} {limit_s:g} s", outcome="timed_out")
        except LegFailed as failure:
            return await fail(502, f"the decode engine broke off its answer: {failure}", outcome="broken")
        except ClientGone:
            self._reply.abort()
            raise asyncio.CancelledError from None
        finally:
            self._route.close()

    async def _follow(self) -> Ending:
        decision: Decision = self._route.first(time.monotonic())
        while True:
            match decision:
                case Prefill(leg, handover):
                    role, outcome = Role.PREFILL, await self._prefill(leg, handover)
                case Decode(leg, alone, fetching):
                    self._alone = alone
                    self._bill = None if alone else self._bill
                    role, outcome = Role.DECODE, await self._decode(leg, self._params if fetching else None)
                case Pair(prefill, decode):
                    role, outcome = await self._pair(prefill, decode)
                case Finished():
                    return self._reply.ending
                case Unserved():
                    return await self._unserved(decision)
            decision = self._route.next(role, outcome, time.monotonic())

    # -- legs

    async def _prefill(
        self, booking: Booking, handover: Handover | None, transfer_id: str = "", rank: int | None = None
    ) -> Outcome:
        to = booking.engine.address
        note = self._call.story.leg(Role.PREFILL, to)
        outcome, reason = Outcome.DONE, ""
        bill = self._bill = asyncio.get_running_loop().create_future()
        asked = legs.prefill_request(
            self._call.asked or {},
            chat=self._call.request.path.endswith("/chat/completions"),
            handover=handover,
            transfer_id=transfer_id,
        )
        body, headers = encode(asked), self._call.headers
        if rank is not None:
            headers = headers.copy()
            headers["X-data-parallel-rank"] = str(rank)
        try:
            with self._upstream.leg(to, self._settings.first_token_timeout) as leg:
                lines = self._lines(self._call.story.headers(headers, note))
                with self._call.story.waits:
                    answer = await self._send(leg, body, lines)
                    content = await answer.read_all(_PREFILL_BYTES_MAX)
            bill.set_result(cached_of(content) if answer.status == 200 else None)
            outcome, reason = outcomes.of_prefill(answer.status, content)
            if outcome in (Outcome.REFUSED, Outcome.INVALID):
                self._refusals[to] = (note, answer.status)
            elif outcome is Outcome.DONE and handover is Handover.PUSH and legs.sends_nothing(content):
                outcome, reason = Outcome.NOTHING, "its one token ended the answer"
            elif outcome is Outcome.DONE and handover in (None, Handover.PULL):
                self._params = legs.pulled_params(content, to)
                if handover is None and not booking.engine.transfer_ids:
                    found = Handover.STORE if self._params is None else Handover.PULL
                    self._router.fleet.learned(booking.engine, found)
        except LegFailed as failure:
            bill.set_result(None)
            outcome, reason = failure.outcome, str(failure)
        self._leg_ended(note, outcome, reason)
        if outcome in (Outcome.DONE, Outcome.NOTHING):
            self._took()
        return outcome

    async def _pair(self, prefill: Booking, decode: Booking) -> tuple[Role, Outcome]:
        """Both legs at once. A prefill that fails before decode's first byte takes the decode leg down with it."""
        id, engine_ids = uuid.uuid4(), prefill.engine.transfer_ids
        transfer_id, rank = f"xfer-{id.hex}", id.int % len(engine_ids)
        params = legs.pushed_params(
            transfer_id,
            engine_ids[rank],
            legs.bootstrap_of(prefill.engine, self._settings.mooncake_bootstrap_port),
        )
        self._is_prefilling = True
        decoding = asyncio.ensure_future(self._decode(decode, params))
        prefilling = asyncio.ensure_future(
            self._prefill(prefill, Handover.PUSH, transfer_id, rank if len(engine_ids) > 1 else None)
        )
        try:
            await asyncio.wait((decoding, prefilling), return_when=asyncio.FIRST_COMPLETED)
            if prefilling.done() and not self._reply.has_begun and prefilling.result() is not Outcome.DONE:
                return Role.PREFILL, prefilling.result()  # whatever became of decode, which was waiting for it
            if prefilling.done() and not decoding.done() and prefilling.result() is Outcome.DONE:
                self._route.prefilled()
                self._is_prefilling = False
                if self._decoding is not None and self._decoding.deadline is not None and not self._decoding.is_lost:
                    self._decoding.limit(self._settings.first_token_timeout)  # now it waits for decode alone
            return Role.DECODE, await decoding
        finally:
            self._is_prefilling = False
            for task in (prefilling, decoding):
                task.cancel()
            await asyncio.gather(prefilling, decoding, return_exceptions=True)

    async def _decode(self, booking: Booking, params: dict[str, Any] | None) -> Outcome:
        call = self._call
        note = call.story.leg(Role.DECODE, booking.engine.address)
        outcome, reason, body = Outcome.DONE, "", call.body
        if params is not None and call.asked is not None:
            body = legs.with_params(body, call.asked, params)
        try:
            timeout_s = self._settings.first_token_timeout if call.streamed else None
            with self._upstream.leg(note.to, timeout_s, self._is_late) as self._decoding:
                leg = self._decoding
                lines = self._lines(call.story.headers(call.headers, note))
                with call.story.waits:
                    answer = await self._send(leg, body, lines)
                    if self._bill is not None and not answer.is_packed:
                        answer = BilledAnswer(answer, self._bill)
                    looked = await self._look(answer)
                if isinstance(looked, _Failed):
                    outcome, reason = looked.outcome, looked.reason
                else:
                    self._route.answered()
                    self._is_refused |= answer.status >= 400
                    if not self._is_refused:
                        self._took()
                    await self._pass_on(leg, answer, looked)
        except LegFailed as failure:
            self._leg_ended(note, failure.outcome, str(failure))
            if self._reply.has_begun:
                self._route.broke_off(time.monotonic())
                raise
            return failure.outcome
        self._leg_ended(note, outcome, reason)
        return outcome

    def _is_late(self) -> bool:
        is_lost = self._decoding is not None and self._decoding.is_lost
        return (is_lost or not self._is_prefilling) and self._route.may_move(time.monotonic())

    def _took(self) -> None:
        """An engine accepted the request: that prefill engines refused it was not the client's fault."""
        said = self._route.took(time.monotonic())
        for note, status in self._refusals.values():
            self._metrics.retries.labels(note.role.value, note.to, note.outcome).inc()
            if note.to in said:
                text = "prefill engine %s answered %d to what another engine accepted: other models, or another key?"
                logger.warning(text, note.to, status)
        self._refusals.clear()

    def _lines(self, headers: CIMultiDict[str]) -> bytes:
        return self._call.lines if headers is self._call.headers else header_lines(headers)

    async def _send(self, leg: Leg, body: bytes, lines: bytes) -> Answer:
        return await leg.send(
            method=self._call.request.method,
            target=self._call.request.rel_url.raw_path_qs,
            lines=lines,
            body=body,
            repeatable=self._call.repeatable,
        )

    async def _look(self, answer: Answer) -> bytes | _Failed:
        """The answer's first bytes, or how it failed if another engine may do better."""
        if answer.status in outcomes.RETRIED:
            body = await answer.read_all(_HELD_BYTES_MAX)
            self._held = Held(answer.status, answer.reason, answer.headers, body)
            return _Failed(outcomes.of_failure(answer.status), f"it answered {answer.status}")
        if not (answer.status == 200 and answer.is_events):
            first = await answer.read()
            if not first and answer.status == 200 and self._call.asked is not None:
                raise LegFailed(Outcome.BROKEN, "it answered 200 without a body")
            return first
        first = await answer.read_event()
        failure = failure_of(first)
        if failure is None or (failure.status < 500 and failure.status not in outcomes.RETRIED):
            self._is_refused = failure is not None  # for the client to see
            return first
        self._held = Held(failure.status, None, CIMultiDict({"Content-Type": "application/json"}), failure.body)
        return _Failed(outcomes.of_failure(failure.status), f"its stream began with an error: {failure.message}")

    async def _pass_on(self, leg: Leg, answer: Answer, first: bytes) -> None:
        leg.settle()
        if self._call.made is not None and answer.status == 200:
            self._call.made(first, leg.to)
        await self._reply.pass_on(
            answer,
            first,
            leg,
            outcome=self._outcome(answer.status),
            limit=self._limit,
            limit_s=self._settings.request_timeout,
        )

    def _outcome(self, status: int) -> str:
        if status >= 400 or self._is_refused:
            return "engine_error"
        return "decode_alone" if self._alone else "ok"

    async def _unserved(self, decision: Unserved) -> Ending:
        if self._held is not None:  # an engine's own words tell more than the proxy's
            return await self._reply.pass_held(self._held, self._outcome(self._held.status))
        if decision.may_have_run:
            message = "the decode engine broke off before it answered; the request may have run"
            return await self._reply.fail(502, message, outcome="unserved")
        tried = f"none of {len(decision.failed)} asked has answered" if decision.failed else "none is up"
        return await self._reply.fail(503, f"no decode engine is available: {tried}", outcome="unserved")

    def _leg_ended(self, note: LegNote, outcome: Outcome, reason: str) -> None:
        role, to = note.role, note.to
        note.end(outcome.value, reason)
        self._metrics.leg(role, to, outcome.value).observe(note.ended - note.began)
        is_doubtful = outcome in (Outcome.REFUSED, Outcome.INVALID)
        if outcome is not Outcome.DONE and not is_doubtful and not self._reply.has_begun:
            self._metrics.retries.labels(role.value, to, outcome.value).inc()
            logger.warning("request %s: %s engine %s failed: %s", self._call.story.id, role.value, to, reason)
